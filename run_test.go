package flow_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
)

// given is a recv of values and then io.EOF: for streams that need no hand of the test.
func given(values ...string) func() (string, error) {
	return func() (string, error) {
		if len(values) == 0 {
			return "", io.EOF
		}
		v := values[0]
		values = values[1:]
		return v, nil
	}
}

// succeed is a handler for whom it doesn't matter.
func succeed(context.Context, flow.Message[string]) error { return nil }

func TestStreamWithoutMessagesIsNilAndAZeroSummary(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingKeyedFIFO, flow.OrderingNone} {
			f := mustNew(t, succeed, flow.Options{Ordering: flow.OrderingOptions{Mode: mode}})
			sum, err := f.Run(t.Context(), given())
			if err != nil || !reflect.DeepEqual(sum, flow.Summary{}) {
				t.Errorf("%v: Run() = %+v, %v, want a zero Summary and nil", mode, sum, err)
			}
		}
	})
}

func TestMessagesAreNumberedFromOneInOrderOfReceipt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var got []flow.Message[string]
		f := mustNew(t, func(_ context.Context, m flow.Message[string]) error {
			got = append(got, flow.Message[string]{Seq: m.Seq, Key: m.Key, Value: m.Value, Attempt: m.Attempt, Pressured: m.Pressured})
			return nil
		}, flow.Options{})
		for range 2 { // each stream counts for itself
			got = nil
			sum, err := f.Run(t.Context(), given("a1", "b1", "1"))
			want := []flow.Message[string]{
				{Seq: 1, Key: "a", Value: "a1", Attempt: 1},
				{Seq: 2, Key: "b", Value: "b1", Attempt: 1},
				{Seq: 3, Key: "", Value: "1", Attempt: 1},
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("handler saw %+v, want %+v", got, want)
			}
			if want := (flow.Summary{Received: 3, Succeeded: 3, Committed: 3, Last: 3}); err != nil || !reflect.DeepEqual(sum, want) {
				t.Errorf("Run() = %+v, %v, want %+v, nil", sum, err, want)
			}
		}
	})
}

func TestWithoutAKeyFunctionEveryKeyIsEmpty(t *testing.T) {
	for _, mode := range []flow.OrderingMode{flow.OrderingFIFO, flow.OrderingNone} {
		f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
			if m.Key != "" {
				return fmt.Errorf("key is %q", m.Key)
			}
			return nil
		}, nil, flow.Options{Ordering: flow.OrderingOptions{Mode: mode}})
		if err != nil {
			t.Fatalf("%v: New: %v", mode, err)
		}
		if _, err := f.Run(t.Context(), given("a1", "b1")); err != nil {
			t.Errorf("%v: Run: %v", mode, err)
		}
	}
}

func TestRunReturnsWhenAllMessagesHaveFinished(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{Ordering: keyed})
		c := start(t, f, "a1", "b1")
		s.finish(t, "a1")
		s.finish(t, "b1")
		if c.over() {
			t.Fatal("Run returned before io.EOF")
		}
		c.Send("c1")
		c.End()
		if c.over() {
			t.Fatal("Run returned while a handler ran")
		}
		s.finish(t, "c1")
		sum, err := c.result(t)
		if want := (flow.Summary{Received: 3, Succeeded: 3, Committed: 3, Last: 3}); err != nil || !reflect.DeepEqual(sum, want) {
			t.Errorf("Run() = %+v, %v, want %+v, nil", sum, err, want)
		}
	})
}

func TestStreamsOfAFlowRunAtOnceAndShareItsCapacity(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{
			Ordering: keyed, Backpressure: flow.BackpressureOptions{Capacity: 3},
		})
		one := start(t, f, "a1", "b1")
		two := start(t, f, "c1", "d1")
		one.End()
		two.End()
		wantNow(t, s, "a1 b1 c1")
		s.finish(t, "a1")
		wantNow(t, s, "b1 c1 d1")
		s.finish(t, "b1")
		if sum, err := one.result(t); err != nil || sum.Succeeded != 2 {
			t.Errorf("first: %+v, %v", sum, err)
		}
		s.finishAll(t)
		if sum, err := two.result(t); err != nil || sum.Succeeded != 2 {
			t.Errorf("second: %+v, %v", sum, err)
		}
	})
}

func TestErrorOfRunIsAFailureAndItsSummaryIsComplete(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{})
		c := start(t, f, "a1", "b1", "c1", "d1")
		s.finish(t, "a1")
		s.fail(t, "b1", errHandler)
		sum, err := c.result(t)
		fault := failureOf(t, err, flow.FailureHandlerError)
		if fault.Seq != 2 || fault.Key != "b" || fault.Attempts != 1 || fault.Value != "b1" || fault.Err != errHandler {
			t.Errorf("failure is %+v", fault)
		}
		if !errors.Is(err, errHandler) {
			t.Error("errors.Is does not see the handler's error")
		}
		want := flow.Summary{Received: 4, Succeeded: 1, Failed: 1, Dropped: 2, Committed: 1, Unsettled: []uint64{2, 3, 4}, Last: 4}
		if !reflect.DeepEqual(sum, want) {
			t.Errorf("summary is %+v, want %+v", sum, want)
		}
	})
}

func TestSummaryHasNoUnexportedFields(t *testing.T) {
	for f := range reflect.TypeFor[flow.Summary]().Fields() {
		if !f.IsExported() {
			t.Errorf("%s is not exported", f.Name)
		}
	}
}

func TestHandlerMayKeepItsValue(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var kept []*int
		f, err := flow.New(func(_ context.Context, m flow.Message[*int]) error {
			kept = append(kept, m.Value)
			return nil
		}, nil, flow.Options{MaxPending: 1})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		if _, err := f.Run(t.Context(), func() (*int, error) {
			if n++; n > 1000 {
				return nil, io.EOF
			}
			return new(n), nil
		}); err != nil {
			t.Fatal(err)
		}
		for i, v := range kept {
			if *v != i+1 {
				t.Fatalf("value %d is %d now", i+1, *v)
			}
		}
	})
}

func TestFromChanGivesValuesUntilTheChannelIsClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ch := make(chan string, 2)
		ch <- "a1"
		ch <- "b1"
		close(ch)
		s := newStage()
		f := mustNew(t, s.handle, flow.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			sum, err := f.Run(t.Context(), flow.FromChan(t.Context(), ch))
			if err != nil || sum.Succeeded != 2 {
				t.Errorf("Run() = %+v, %v, want 2 succeeded", sum, err)
			}
		}()
		s.finishAll(t)
		<-done
		recv := flow.FromChan(t.Context(), ch)
		if v, err := recv(); v != "" || err != io.EOF {
			t.Errorf("recv of a closed channel = %q, %v, want io.EOF", v, err)
		}
	})
}

func TestFromChanEndsWithItsContext(t *testing.T) {
	bubble(t, func(t *testing.T) {
		ch := make(chan string, 1)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		recv := flow.FromChan(ctx, ch)
		ch <- "a1"
		if v, err := recv(); v != "a1" || err != nil {
			t.Fatalf("recv() = %q, %v", v, err)
		}
		began := time.Now()
		if _, err := recv(); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("recv() = %v, want DeadlineExceeded", err)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("recv blocked for %v, want 1s", d)
		}
		ch <- "b1"
		for range 20 { // a context that has ended comes before a value that is there
			if _, err := recv(); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("recv() = %v, want DeadlineExceeded", err)
			}
		}
	})
}

func TestFlowKeepsNoGoroutineBetweenStreams(t *testing.T) {
	bubble(t, func(t *testing.T) { // the bubble reports a goroutine that stays
		f := mustNew(t, succeed, flow.Options{
			Ordering: keyed, IdleTimeout: time.Hour, Retry: flow.RetryOptions{MaxAttempts: 3, Backoff: time.Hour},
		})
		for range 3 {
			if _, err := f.Run(t.Context(), given("a1", "b1", "c1")); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
	})
}
