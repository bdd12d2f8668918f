package flowclient

import (
	"reflect"

	"google.golang.org/protobuf/proto"
)

// sizeFunc returns what measures a *Req in encoded bytes, or nil if it has no size.
func sizeFunc[Req any]() func(*Req) int {
	t := reflect.TypeFor[*Req]()
	switch {
	case t.Implements(reflect.TypeFor[proto.Message]()):
		return func(m *Req) int { return proto.Size(any(m).(proto.Message)) }
	case t.Implements(reflect.TypeFor[interface{ Size() int }]()):
		return func(m *Req) int { return max(0, any(m).(interface{ Size() int }).Size()) }
	case t.Elem().Kind() == reflect.String, t.Elem().Kind() == reflect.Slice && t.Elem().Elem().Kind() == reflect.Uint8:
		return func(m *Req) int { return reflect.ValueOf(m).Elem().Len() }
	}
	return nil
}
