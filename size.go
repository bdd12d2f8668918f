package flow

import (
	"reflect"

	"google.golang.org/protobuf/proto"
)

// defaultMaxPendingBytes is MaxPendingBytes where none is given and messages have a size.
const defaultMaxPendingBytes = 64 << 20

// sizeFunc returns what measures a T in bytes. It returns nil if T has no size. It is called once for each message, so
// none of the functions allocates.
func sizeFunc[T any]() func(T) int {
	t := reflect.TypeFor[T]()
	switch {
	case t.Implements(reflect.TypeFor[proto.Message]()):
		return func(v T) int {
			m, _ := any(v).(proto.Message)
			return proto.Size(m)
		}
	case t.Implements(reflect.TypeFor[interface{ Size() int }]()):
		if t.Kind() == reflect.Interface {
			return func(v T) int { return max(0, any(v).(interface{ Size() int }).Size()) }
		}
		// The method as a function of its receiver: to make an interface of a struct would allocate.
		m, _ := t.MethodByName("Size")
		size := m.Func.Interface().(func(T) int)
		return func(v T) int { return max(0, size(v)) }
	case t.Kind() == reflect.String, t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Uint8:
		return func(v T) int { return reflect.ValueOf(&v).Elem().Len() }
	}
	return nil
}
