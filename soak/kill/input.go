package main

import (
	"encoding/binary"

	testpb "google.golang.org/grpc/interop/grpc_testing"
)

type (
	request = testpb.StreamingInputCallRequest
	reply   = testpb.StreamingInputCallResponse
)

// The generated input of a session is the numbers 1, 2, 3 and so on, each of a key that follows from it. So a sender that
// was killed can go on anywhere, and whoever looks at what is stored knows what should be.

// bodySize is that of a message's body, of which the first bytes are the number and the key, and the rest is filling.
const bodySize = 128

// messageSize is that of each message, encoded.
const messageSize = bodySize + 6

// keyOf returns the key of a number, of so many.
func keyOf(number uint64, keys int) uint32 {
	h := number * 0x9e3779b97f4a7c15 // golden ratio: neighbours get keys far apart
	h ^= h >> 32
	return uint32(h % uint64(keys))
}

func newRequest(number uint64, keys int) *request {
	b := make([]byte, bodySize)
	binary.LittleEndian.PutUint64(b, number)
	binary.LittleEndian.PutUint32(b[8:], keyOf(number, keys))
	return &request{Payload: &testpb.Payload{Body: b}}
}

// content reads the number and the key that newRequest wrote.
func content(r *request) (number uint64, key uint32) {
	b := r.GetPayload().GetBody()
	return binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint32(b[8:])
}

// orderingKey is the key, for flow.
func orderingKey(r *request) string { return string(r.GetPayload().GetBody()[8:12]) }
