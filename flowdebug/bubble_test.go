package flowdebug_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowdebug"
	"example.com/flow/flowtest"
)

// A page is often made once for all tests of a binary, which then run in bubbles: there it is the year 2000.

// runOne runs one message through a Flow of its own that is shown as "f". A message that is "bad" fails.
func runOne(t *testing.T, page *flowdebug.Page, value string) {
	t.Helper()
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		time.Sleep(100 * time.Millisecond)
		if m.Value == "bad" {
			return errors.New("no good")
		}
		return nil
	}, nil, flow.Options{
		Observer:  page.Observer("f"),
		OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	})
	if err != nil {
		t.Fatal(err)
	}
	page.Add("f", f)
	source := flowtest.NewSource(t, value)
	source.End()
	if _, err := f.Run(t.Context(), source.Recv); err != nil {
		t.Errorf("%q fails the stream: %v: %v", value, err, errors.Unwrap(err))
	}
}

// finished returns how many messages finished in the whole seconds of the history.
func finished(t *testing.T, page *flowdebug.Page) (n int) {
	t.Helper()
	for _, second := range read(t, page, "?format=json").Flows[0].History.Finished {
		n += second
	}
	return n
}

func TestPageMadeOutsideABubbleServesFlowsInside(t *testing.T) {
	page := flowdebug.New()
	page.Observer("f") // from now on its seconds are counted
	for i := range 3 {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(time.Duration(i) * 10 * time.Minute) // all bubbles begin at the same time
			runOne(t, page, "good")
			runOne(t, page, "bad")
			time.Sleep(2 * time.Second)
			if n := finished(t, page); n != 2 {
				t.Errorf("bubble %d: the last three minutes have %d messages, want 2", i, n)
			}
		})
	}
}

func TestPageMadeInsideABubbleServesFlowsOutside(t *testing.T) {
	page := flowdebug.New()
	synctest.Test(t, func(t *testing.T) { runOne(t, page, "bad") })
	runOne(t, page, "bad")
	if f := read(t, page, "?format=json").Flows[0]; len(f.Failures) != 2 || f.Failures[0].Ago < 0 || f.Failures[0].Ago > 60 {
		t.Errorf("failures are %+v", f.Failures)
	}
}

func TestSnapshotOfAnotherClockIsNotShown(t *testing.T) {
	page, c := flowdebug.New(), new(counting)
	page.Add("f", c)
	read(t, page, "?format=json")
	synctest.Test(t, func(t *testing.T) { // of the year 2000, when the last one is not made yet
		read(t, page, "?format=json")
	})
	read(t, page, "?format=json")
	if c.snapshots != 3 {
		t.Errorf("%d snapshots were taken, want 3", c.snapshots)
	}
}

func TestFailureOfAnotherClockIsNoFuture(t *testing.T) {
	page := flowdebug.New()
	runOne(t, page, "bad")
	synctest.Test(t, func(t *testing.T) {
		for _, f := range read(t, page, "?format=json").Flows[0].Failures {
			if f.Ago < 0 {
				t.Errorf("it failed %v seconds ago", f.Ago)
			}
		}
	})
}

func TestHistoryOfSecondsBeforeThePageWasMadeIsWhole(t *testing.T) {
	page := flowdebug.New()
	synctest.Test(t, func(*testing.T) {
		time.Sleep(5 * time.Minute)
		page.Observer("f") // its seconds are counted from here, half of those below are negative
	})
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(2 * time.Minute)
		for range 270 {
			runOne(t, page, "good")
			time.Sleep(900 * time.Millisecond)
		}
		for i, n := range read(t, page, "?format=json").Flows[0].History.Finished {
			if n != 1 {
				t.Errorf("second %d of 180 has %d messages, want 1 in each", i, n)
			}
		}
	})
}
