package natsflow

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// The client library's ordered consumer, by which the reader once read, is made anew within Next. A Stop at that moment stops
// the old one only, and Next waits on with the new one (nats.go 1.55.0): a partition that was lost just then was never left,
// and Run never returned.
func TestAReaderEndsWithItsContextAlsoWhileItsConsumerIsMadeAnew(t *testing.T) {
	js, topic := topicOf(t, 1)
	stream, err := js.Stream(t.Context(), topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		ctx, cancel := context.WithCancel(t.Context())
		s := jetStream[string]{js, topic, words}.source(0, 0)
		over := make(chan error, 1)
		go func() {
			_, err := s.Next(ctx)
			over <- err
		}()
		await(t, "a consumer is pulled from, and deleted", func() (deleted bool) {
			for c := range stream.ListConsumers(t.Context()).Info() {
				if c.NumWaiting > 0 {
					deleted = stream.DeleteConsumer(t.Context(), c.Name) == nil
				}
			}
			return deleted
		})
		time.Sleep(time.Duration(rand.IntN(600)) * time.Microsecond)
		cancel()
		select {
		case err := <-over:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Next returned %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("Next does not return")
		}
		s.close()
		for name := range stream.ConsumerNames(t.Context()).Name() { // the list gets no longer
			_ = stream.DeleteConsumer(t.Context(), name)
		}
	}
}

// What somebody else has stored has no key, and the codec's Key may not like it: that is the message's failure, and reading
// goes on.
func TestPanicOfTheKeyOfAForeignMessageEndsNoReading(t *testing.T) {
	js, topic := topicOf(t, 1)
	codec := words
	codec.Key = func(s string) string {
		if strings.HasPrefix(s, "foreign/") {
			panic("no")
		}
		return words.Key(s)
	}
	if _, err := js.Publish(t.Context(), topic.subject(0), []byte("foreign/1")); err != nil {
		t.Fatal(err)
	}
	publish(t, js, topic, "a/1")
	s := jetStream[string]{js, topic, codec}.source(0, 0)
	defer s.close()
	m, err := s.Next(t.Context())
	if decode, ok := errors.AsType[*DecodeError](m.Err); err != nil || !ok || decode.Err.Error() != "panic: no" || m.Value != "" {
		t.Errorf("%+v, %v", m, err)
	}
	if m, err := s.Next(t.Context()); err != nil || m.Value != "a/1" || m.Err != nil {
		t.Errorf("%+v, %v", m, err)
	}
}

// Where the stream ends is the leader's to say, which may be behind the server that messages come from.
func TestAStreamIsTakenForAnOlderOneOnlyAfterAWhile(t *testing.T) {
	r := reader[string]{last: 10}
	at := time.Now()
	for _, c := range []struct {
		end  uint64
		wait time.Duration
		want error
	}{
		{10, 0, nil}, {9, time.Hour, errShort}, {9, shortLimit - 1, errShort}, {10, 0, nil},
		{9, time.Hour, errShort}, {8, shortLimit, errStreamIsOlder}, {0, time.Hour, errStreamIsOlder}, {11, 0, nil}, {9, time.Hour, errShort},
	} {
		at = at.Add(c.wait)
		if err := r.ends(c.end, at); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
			t.Errorf("ends with %d: %v, want %v", c.end, err, c.want)
		}
	}
}
