package flow

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

type contextKey struct{}

type otherKey struct{}

// An attempt's context is what context.WithTimeoutCause would have made, whatever is asked first, and whenever.
func TestAttemptContextIsAContextWithATimeout(t *testing.T) {
	asks := map[string]func(context.Context) context.Context{
		"nothing before": func(c context.Context) context.Context { return c },
		"Done":           func(c context.Context) context.Context { c.Done(); return c },
		"Err":            func(c context.Context) context.Context { _ = c.Err(); return c },
		"a child": func(c context.Context) context.Context {
			child, cancel := context.WithCancel(c)
			context.AfterFunc(child, cancel)
			return child
		},
		"a child with values": func(c context.Context) context.Context { return context.WithValue(c, otherKey{}, "b") },
	}
	for name, ask := range asks {
		for _, end := range []string{"timeout", "parent", "return"} {
			t.Run(name+", "+end, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					why := errors.New("why")
					parent, cancel := context.WithCancelCause(context.WithValue(t.Context(), contextKey{}, 7))
					defer cancel(nil)
					c := new(contextSlab).new(parent, time.Second)
					ctx := ask(c)
					if at, ok := ctx.Deadline(); !ok || !at.Equal(time.Now().Add(time.Second)) {
						t.Errorf("Deadline() = %v, %v", at, ok)
					}
					if ctx.Value(contextKey{}) != 7 || ctx.Err() != nil || context.Cause(ctx) != nil {
						t.Errorf("value %v, error %v, cause %v", ctx.Value(contextKey{}), ctx.Err(), context.Cause(ctx))
					}
					var err, cause error
					switch end {
					case "timeout":
						time.Sleep(time.Second)
						err, cause = context.DeadlineExceeded, ErrAttemptTimeout
					case "parent":
						cancel(why)
						err, cause = context.Canceled, why
					case "return":
						c.end()
						err, cause = context.Canceled, context.Canceled
					}
					synctest.Wait()
					if ctx.Err() != err || context.Cause(ctx) != cause {
						t.Errorf("after its end: error %v, cause %v, want %v, %v", ctx.Err(), context.Cause(ctx), err, cause)
					}
					select {
					case <-ctx.Done():
					default:
						t.Error("it is not done")
					}
					if ctx.Value(contextKey{}) != 7 {
						t.Error("its values are gone")
					}
					c.end()
				})
			})
		}
	}
}

func TestAttemptContextThatNobodyAsksHasNoTimer(t *testing.T) {
	c := new(contextSlab).new(t.Context(), time.Hour)
	if c.Value(contextKey{}) != nil || c.Err() != nil {
		t.Error("it says something that nobody has said")
	}
	if c.real != nil {
		t.Error("it has become a real context")
	}
}

func TestAttemptContextOfAnEarlierDeadlineHasThat(t *testing.T) {
	parent, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := new(contextSlab).new(parent, time.Hour)
	want, _ := parent.Deadline()
	if at, ok := c.Deadline(); !ok || !at.Equal(want) {
		t.Errorf("Deadline() = %v, %v, want %v", at, ok, want)
	}
}
