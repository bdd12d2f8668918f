package natsflow

import (
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"google.golang.org/protobuf/proto"
)

// Codec makes bytes of messages, and messages of bytes. Its functions are called concurrently.
type Codec[T any] struct {
	// Key names what must stay in order. Gateways ask it, and store it with the message.
	Key func(T) string
	// Marshal and Unmarshal must fit each other over all versions that are in use at the same time, and as long as
	// messages are kept. Unmarshal must not keep its argument.
	Marshal   func(T) ([]byte, error)
	Unmarshal func([]byte) (T, error)
}

// Proto is the Codec of a generated protobuf message: Proto((*pb.Reading).GetDevice). It panics if T is no such type.
func Proto[T proto.Message](key func(T) string) Codec[T] {
	var zero T
	if any(zero) == nil {
		panic(fmt.Sprintf("natsflow: Proto needs the type of a generated message, not %T", &zero))
	}
	kind := zero.ProtoReflect().Type()
	return Codec[T]{
		Key:     key,
		Marshal: func(m T) ([]byte, error) { return proto.Marshal(m) },
		Unmarshal: func(data []byte) (T, error) {
			m := kind.New().Interface().(T)
			return m, proto.Unmarshal(data, m)
		},
	}
}

var errIncompleteCodec = errors.New("natsflow: Codec.Key, Marshal and Unmarshal must be set")

func (c Codec[T]) validate() error {
	if c.Key == nil || c.Marshal == nil || c.Unmarshal == nil {
		return errIncompleteCodec
	}
	return nil
}

// The headers of a stored message. They are written as they stand here: NATS compares header names as bytes.
const (
	headerID  = jetstream.MsgIDHeader
	headerKey = "Flow-Key"
)

// outgoing is a message on its way into the stream. It is used again for the next one: its map and its headers are most of
// what a message would allocate, and the client library copies what it publishes.
type outgoing struct {
	nats.Msg
	headers [2]string // the values of headerID and headerKey
}

func newOutgoing() *outgoing {
	o := &outgoing{}
	o.Header = nats.Header{headerID: o.headers[:1:1], headerKey: o.headers[1:]}
	return o
}

// message makes o what is stored of v: id is what its session and its number make of it.
func (c Codec[T]) message(o *outgoing, t Topic, id messageID, v T) error {
	data, err := c.Marshal(v)
	if err != nil {
		return fmt.Errorf("natsflow: marshal: %w", err)
	}
	key := c.Key(v)
	o.Subject = t.subject(partitionOf(key, t.Partitions))
	o.headers = [...]string{id.String(), url.PathEscape(key)}
	o.Data = data
	return nil
}

// storedKey is the key that a stored message says it has. ok is false if it says none.
func storedKey(h nats.Header) (key string, ok bool) {
	values := h[headerKey]
	if len(values) != 1 {
		return "", false
	}
	key, err := url.PathUnescape(values[0])
	return key, err == nil
}

// messageID names a message for ever, whoever stores it and however often.
type messageID struct {
	// session is flow's SessionID.String; of a message without a session it is a name without a slash, made up for its
	// stream.
	session string
	number  uint64
}

func (id messageID) String() string {
	b := make([]byte, 0, 64)
	b = append(b, id.session...)
	b = append(b, '/')
	return string(strconv.AppendUint(b, id.number, 10))
}

// isSession reports whether the message is of a session.
func (id messageID) isSession() bool { return strings.Contains(id.session, "/") }

// storedID is the id of a stored message. ok is false if it is none that message made.
func storedID(h nats.Header) (id messageID, ok bool) {
	values := h[headerID]
	if len(values) != 1 {
		return messageID{}, false
	}
	i := strings.LastIndexByte(values[0], '/')
	if i <= 0 {
		return messageID{}, false
	}
	number, err := strconv.ParseUint(values[0][i+1:], 10, 64)
	return messageID{session: values[0][:i], number: number}, err == nil
}

// hashName names partitionOf in the stream's metadata.
const hashName = "fnv1a64-fmix64"

// partitionOf is the partition of a key. FNV-1a alone leaves the low bits of the last bytes nearly as they are, so that
// with a power of two as n some keys would meet more often: hence the finalizer.
func partitionOf(key string, n int) int {
	const offset, prime = 14695981039346656037, 1099511628211
	x := uint64(offset)
	for i := range len(key) {
		x ^= uint64(key[i])
		x *= prime
	}
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return int(x % uint64(n))
}
