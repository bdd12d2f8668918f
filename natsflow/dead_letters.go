package natsflow

import (
	"context"
	"net/url"
	"strconv"

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
	reason := letter.Err.Error()
	m.Header[headerID] = []string{d.topic.Name + "/" + seq}
	m.Header[headerKey] = []string{url.PathEscape(letter.Key)}
	m.Header[headerDeadSeq] = []string{seq}
	m.Header[headerDeadEpoch] = []string{strconv.FormatUint(d.epoch, 10)}
	m.Header[headerDeadAttempts] = []string{strconv.Itoa(letter.Attempts)}
	m.Header[headerDeadReason] = []string{url.PathEscape(reason[:min(len(reason), maxReason)])}
	_, err := d.js.PublishMsg(ctx, m, jetstream.WithRetryAttempts(0))
	return err
}
