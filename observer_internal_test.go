package flow

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// logged returns the lines that SlogObserver writes of events at a level.
func logged(level slog.Level, events ...Event) []string {
	var b bytes.Buffer
	o := SlogObserver(slog.New(slog.NewTextHandler(&b, &slog.HandlerOptions{Level: level})))
	for _, e := range events {
		o(context.Background(), e)
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")[:strings.Count(b.String(), "\n")]
}

func TestEveryEventKindHasItsName(t *testing.T) {
	names := []string{"EventStreamStart", "EventAttempt", "EventRetry", "EventSuccess", "EventFailure", "EventReject",
		"EventDrop", "EventPressure", "EventStreamEnd", "EventShutdown", "EventDuplicate", "EventSession", "EventSaveFailed",
		"EventKind(13)"}
	for i, name := range names {
		if EventKind(i).String() != name {
			t.Errorf("%d is %v, want %s", i, EventKind(i), name)
		}
	}
}

func TestSlogObserverWritesNothingPerSuccessAtInfo(t *testing.T) {
	boom := &Failure{Kind: FailureHandlerError, Seq: 1, Err: errors.New("boom")}
	noise := []Event{
		{Kind: EventStreamStart, Stream: 1},
		{Kind: EventPressure, Stream: 1, Seq: 1},
		{Kind: EventAttempt, Stream: 1, Seq: 1, Attempt: 1},
		{Kind: EventRetry, Stream: 1, Seq: 1, Attempt: 1, Delay: time.Second, Failure: boom},
		{Kind: EventSuccess, Stream: 1, Seq: 1, Attempt: 2},
		{Kind: EventDrop, Stream: 1, Seq: 2},
	}
	if got := logged(slog.LevelInfo, noise...); len(got) != 0 {
		t.Errorf("wrote %q", got)
	}
	if got := logged(slog.LevelDebug, noise...); len(got) != len(noise) {
		t.Errorf("at Debug wrote %q", got)
	}
}

func TestSlogObserverLevelSaysWhetherToAct(t *testing.T) {
	broken := &Failure{Kind: FailureInternal, Err: recvFailure(errors.New("broken pipe")).Err}
	for _, c := range []struct {
		e     Event
		level string
		has   []string
	}{
		{Event{Kind: EventFailure, Stream: 3, Seq: 7, Key: "k", Attempt: 2, Took: time.Second,
			Failure: &Failure{Kind: FailureHandlerError, Seq: 7, Err: errors.New("boom")}}, "WARN",
			[]string{"stream=3", "seq=7", "key=k", "attempt=2", "took=1s", "kind=FailureHandlerError", "boom", "settled=false"}},
		{Event{Kind: EventFailure, Settled: true, Failure: &Failure{Kind: FailureHandlerError}}, "WARN", []string{"settled=true"}},
		{Event{Kind: EventFailure, Failure: &Failure{Kind: FailureInternal, Err: newPanicError("boom")}, Stack: []byte("the stack")},
			"ERROR", []string{`cause="panic: boom"`, `stack="the stack"`}},
		{Event{Kind: EventFailure, Failure: &Failure{Kind: FailureContextCancelled, Err: context.Canceled}}, "INFO", nil},
		{Event{Kind: EventReject, Failure: &Failure{Kind: FailureBackpressure}}, "WARN", []string{"settled=false"}},
		{Event{Kind: EventReject, Failure: &Failure{Kind: FailureOrdering}}, "WARN", nil},
		{Event{Kind: EventReject, Failure: &Failure{Kind: FailureShutdown}}, "INFO", nil},
		{Event{Kind: EventStreamEnd, Took: time.Minute,
			Summary: Summary{Received: 9, Succeeded: 4, Failed: 1, Rejected: 1, Dropped: 3, Retried: 8, Committed: 2, Unsettled: []uint64{3, 4}}},
			"INFO", []string{"received=9", "succeeded=4", "failed=1", "rejected=1", "dropped=3", "retried=8", "committed=2", "unsettled=2", "took=1m"}},
		{Event{Kind: EventStreamEnd, Failure: &Failure{Kind: FailureHandlerError}}, "WARN", []string{"received=0"}},
		{Event{Kind: EventStreamEnd, Failure: broken}, "ERROR", []string{`cause="broken pipe"`}},
		{Event{Kind: EventStreamEnd, Failure: &Failure{Kind: FailureContextCancelled}}, "INFO", nil},
		{Event{Kind: EventShutdown}, "INFO", nil},
	} {
		got := logged(slog.LevelInfo, c.e)
		if len(got) != 1 || !strings.Contains(got[0], "level="+c.level) {
			t.Errorf("%v of %v: %q", c.e.Kind, c.e.Failure, got)
			continue
		}
		for _, part := range c.has {
			if !strings.Contains(got[0], part) {
				t.Errorf("%v of %v: no %s in %q", c.e.Kind, c.e.Failure, part, got[0])
			}
		}
	}
}

func TestSlogObserverIgnoresKindsItDoesNotKnow(t *testing.T) {
	if got := logged(slog.LevelDebug, Event{Kind: EventSaveFailed + 1}, Event{Kind: -1}); len(got) != 0 {
		t.Errorf("wrote %q", got)
	}
}

func TestSlogObserverNeverWritesAValueAndLittleOfAKey(t *testing.T) {
	const secret = "secret reading"
	key := strings.Repeat("k", 64) + strings.Repeat("x", 1000)
	for kind := EventStreamStart; kind <= EventSaveFailed; kind++ {
		for fk := FailureNone; fk <= FailureInternal; fk++ {
			f := &Failure{Kind: fk, Seq: 1, Key: key, Value: secret, Err: newPanicError(struct{ v string }{secret})}
			got := strings.Join(logged(slog.LevelDebug, Event{Kind: kind, Seq: 1, Key: key, Failure: f}), "\n")
			if strings.Contains(got, "secret") {
				t.Errorf("%v: %s", kind, got)
			}
			if strings.Contains(got, "kx") || !strings.Contains(got, strings.Repeat("k", 64)) {
				t.Errorf("%v: %s", kind, got)
			}
		}
	}
	if got := cutText(strings.Repeat("€", 30), maxLoggedKey); len(got) != 63 {
		t.Errorf("%d bytes of a key in three-byte runes", len(got))
	}
}

// Clients choose keys, and errors quote what clients send: neither may break the lines, or whoever reads them.
func TestSlogObserverWritesValidUTF8OfLimitedLength(t *testing.T) {
	garbage := strings.Repeat("k\xff\xfe€"[:4], 1<<18)
	for kind := EventStreamStart; kind <= EventSaveFailed; kind++ {
		for _, fk := range []FailureKind{FailureHandlerError, FailureInternal, FailureOrdering, FailureContextCancelled} {
			f := newFailure(fk, errors.New(garbage))
			f.Seq, f.Key = 1, garbage
			check := &checkingHandler{t: t}
			SlogObserver(slog.New(check))(t.Context(), Event{Kind: kind, Stream: 1, Seq: 1, Key: garbage, Failure: f})
			if check.lines != 1 {
				t.Errorf("%v: %d lines", kind, check.lines)
			}
		}
	}
}

// checkingHandler checks what it is given to write.
type checkingHandler struct {
	slog.Handler
	t     *testing.T
	lines int
}

func (h *checkingHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h *checkingHandler) Handle(_ context.Context, r slog.Record) error {
	h.lines++
	r.Attrs(func(a slog.Attr) bool {
		limit := maxText
		if a.Key == "key" {
			limit = 64
		}
		if text := a.Value.String(); !utf8.ValidString(text) || len(text) > limit {
			h.t.Errorf("%s: %s has %d bytes, valid: %v", r.Message, a.Key, len(text), utf8.ValidString(text))
		}
		return true
	})
	return nil
}

func TestSlogObserverQuotesKeysThatWouldForgeLines(t *testing.T) {
	got := logged(slog.LevelInfo, Event{Kind: EventReject, Seq: 1, Key: "k\nlevel=ERROR", Failure: &Failure{Kind: FailureOrdering}})
	if len(got) != 1 {
		t.Errorf("%d lines: %q", len(got), got)
	}
}

func TestSlogObserverCostsNoAllocationWhenNotLogging(t *testing.T) {
	o := SlogObserver(slog.New(slog.NewTextHandler(io.Discard, nil)))
	e := Event{Kind: EventSuccess, Stream: 1, Seq: 7, Key: "k", Attempt: 1}
	if n := testing.AllocsPerRun(100, func() { o(context.Background(), e) }); n != 0 {
		t.Errorf("%v allocations for an event that is not written", n)
	}
}

func TestSlogObserverWithoutALoggerUsesTheDefault(t *testing.T) {
	var b bytes.Buffer
	before := slog.Default()
	defer slog.SetDefault(before)
	slog.SetDefault(slog.New(slog.NewTextHandler(&b, nil)))
	SlogObserver(nil)(t.Context(), Event{Kind: EventShutdown})
	if !strings.Contains(b.String(), "flow: shutting down") {
		t.Errorf("wrote %q", b.String())
	}
}

func TestSlogObserverWritesOfSessionsWhatAnOperatorNeeds(t *testing.T) {
	session := Session{ID: SessionID{Owner: "tenant", Name: "secret-session-name"}, Epoch: 3, Fence: 5}
	for _, c := range []struct {
		e     Event
		level slog.Level
		has   string
	}{
		{Event{Kind: EventSession, Stream: 1, Session: session, Found: "new"}, slog.LevelDebug, "found=new"},
		{Event{Kind: EventSession, Stream: 1, Session: session, Found: "lost"}, slog.LevelWarn, "session was lost"},
		{Event{Kind: EventDuplicate, Stream: 1, Seq: 7}, slog.LevelDebug, "seq=7"},
		{Event{Kind: EventSaveFailed, Stream: 1, Session: session, Failure: newFailure(FailureInternal, errors.New("down"))}, slog.LevelWarn, "down"},
		{Event{Kind: EventStreamEnd, Stream: 1, Session: session, Summary: Summary{Duplicates: 4}}, slog.LevelInfo, "duplicates=4"},
		{Event{Kind: EventStreamEnd, Stream: 1, Session: session, Failure: busyFailure()}, slog.LevelWarn, "still busy"},
		{Event{Kind: EventStreamEnd, Stream: 1, Session: session, Failure: malformedFailure(errors.New("flow-start is malformed"))}, slog.LevelWarn, "flow-start"},
		{Event{Kind: EventStreamEnd, Stream: 1, Session: session, Failure: movedFailure(3, 4)}, slog.LevelInfo, "moved"},
	} {
		got := logged(c.level, c.e)
		if len(got) != 1 || len(logged(c.level+1, c.e)) != 0 || !strings.Contains(got[0], c.has) {
			t.Errorf("%v: %q", c.e.Kind, got)
			continue
		}
		if strings.Contains(got[0], "secret-s") != (c.e.Kind != EventDuplicate) || strings.Contains(got[0], "secret-se") {
			t.Errorf("%v does not quote 8 bytes of the name: %q", c.e.Kind, got)
		}
	}
}
