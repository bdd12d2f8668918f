package natsflow

import (
	"context"
	"net/url"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"example.com/flow/natsflow/partition"
)

// The headers of a dead letter, beside those that the message was stored with but its id.
const (
	headerDeadSeq      = "Flow-Seq"      // of the message in the topic's stream
	headerDeadEpoch    = "Flow-Epoch"    // of the worker that gave it up
	headerDeadAttempts = "Flow-Attempts" // how often the handler was called
	headerDeadReason   = "Flow-Reason"   // why it was given up

	maxReason = 1024
)

// deadLetters stores the dead letters of one hold of a partition. They carry the epoch: a worker that was stopped in its
// last attempt and has given up later than it should shows as one of an old epoch.
type deadLetters struct {
	js        jetstream.JetStream
	topic     Topic
	partition int
	epoch     uint64
}

// Store implements partition.DeadLetters. A letter of the same message and epoch is stored once within Topic.Dedupe.
func (d deadLetters) Store(ctx context.Context, letter partition.DeadLetter) error {
	m := &nats.Msg{Subject: d.topic.deadSubject(d.partition), Data: letter.Raw, Header: nats.Header{}}
	for name, values := range letter.Headers {
		m.Header[name] = values
	}
	seq := strconv.FormatUint(letter.Position, 10)
	m.Header[headerID] = []string{d.topic.Name + "/" + seq}
	m.Header[headerKey] = []string{url.PathEscape(letter.Key)}
	m.Header[headerDeadSeq] = []string{seq}
	m.Header[headerDeadEpoch] = []string{strconv.FormatUint(d.epoch, 10)}
	m.Header[headerDeadAttempts] = []string{strconv.Itoa(letter.Attempts)}
	m.Header[headerDeadReason] = []string{""}
	headers, size := measured(m)
	room := min(int(d.js.Conn().MaxPayload())-size, maxHeaders-headers)
	m.Header[headerDeadReason] = []string{escapedReason(letter.Err.Error(), room)}
	_, err := d.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	return err
}

// escapedReason is as much of the text as goes into a header that has so much room.
func escapedReason(text string, room int) string {
	escaped := url.PathEscape(text[:min(len(text), maxReason)])
	if len(escaped) <= room {
		return escaped
	}
	escaped = escaped[:max(room, 0)]
	if i := strings.LastIndexByte(escaped, '%'); i >= 0 && i > len(escaped)-len("%00") { // not a part of an escape
		escaped = escaped[:i]
	}
	return escaped
}
