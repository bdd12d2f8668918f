package testkit

import "errors"

// ErrHandler is what a handler fails with where it does not matter with what.
var ErrHandler = errors.New("handler failed")

// NilError is an error whose methods panic while it is nil, as those of a nil pointer do that a handler returns as an error.
type NilError struct{ table string }

func (e *NilError) Error() string { return "table " + e.table }

// Unwrap returns another error.
func (e *NilError) Unwrap() error { return errors.New(e.table) }

// Is reports whether target has the same text.
func (e *NilError) Is(target error) bool { return target.Error() == e.table }

// As reports whether the error is empty.
func (e *NilError) As(any) bool { return e.table == "" }
