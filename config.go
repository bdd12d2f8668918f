package flow

import (
	"errors"
	"fmt"
)

// invalid is the error of an impossible configuration: it names the field, its value and the rule.
func invalid(field string, value any, rule string) error {
	return fmt.Errorf("flow: Options.%s %s (got %v)", field, rule, value)
}

var (
	errNilHandler = errors.New("flow: handler must not be nil")
	errNilKey     = errors.New("flow: key must not be nil when Options.Ordering.Mode is OrderingKeyedFIFO")
)

// mustBeValid is how the constructors of single parts refuse what New returns as an error.
func mustBeValid(err error) {
	if err != nil {
		panic(err.Error())
	}
}
