package main

import (
	"encoding/binary"
	"time"

	testpb "google.golang.org/grpc/interop/grpc_testing"
)

type (
	request = testpb.StreamingInputCallRequest
	reply   = testpb.StreamingInputCallResponse
)

// letter is what the body of a message says; the rest of the body is filling.
type letter struct {
	seq    uint64        // in its stream
	keySeq uint64        // in its key
	due    time.Duration // when it was to be sent, since the start of the soak
	work   time.Duration // how long its handler takes
	timed  bool          // its delay is measured
	key    byte
}

const letterSize = 34

func (l letter) request(size int) *request {
	b := make([]byte, max(size, letterSize))
	b[0] = l.key
	if l.timed {
		b[1] = 1
	}
	binary.LittleEndian.PutUint64(b[2:], l.seq)
	binary.LittleEndian.PutUint64(b[10:], l.keySeq)
	binary.LittleEndian.PutUint64(b[18:], uint64(l.due))
	binary.LittleEndian.PutUint64(b[26:], uint64(l.work))
	return &request{Payload: &testpb.Payload{Body: b}}
}

func read(r *request) letter {
	b := r.GetPayload().GetBody()
	return letter{
		key: b[0], timed: b[1] == 1,
		seq:    binary.LittleEndian.Uint64(b[2:]),
		keySeq: binary.LittleEndian.Uint64(b[10:]),
		due:    time.Duration(binary.LittleEndian.Uint64(b[18:])),
		work:   time.Duration(binary.LittleEndian.Uint64(b[26:])),
	}
}

func keyOf(r *request) string { return string(r.GetPayload().GetBody()[:1]) }
