package otelflow_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	sdk "go.opentelemetry.io/otel/sdk/metric"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/otelflow"
)

// failing is a store that has had enough after some Saves.
type failing struct {
	flow.SessionStore
	left atomic.Int32
}

func (s *failing) Save(ctx context.Context, id flow.SessionID, state flow.SessionState, version uint64) (uint64, error) {
	if s.left.Add(-1) < 0 {
		return 0, status.Error(codes.Unavailable, "the database is away")
	}
	return s.SessionStore.Save(ctx, id, state, version)
}

func failingAfter(saves int32) *failing {
	s := &failing{SessionStore: flow.NewSessionMemory(0, 0)}
	s.left.Store(saves)
	return s
}

// streams runs one stream after the other, each with headers as "session=a start=5" and two messages, and returns what was
// collected of them.
func streams(t *testing.T, store flow.SessionStore, headers ...string) map[string]float64 {
	t.Helper()
	reader := sdk.NewManualReader()
	tel := otelflow.New(otelflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader))))
	f, err := flow.New(func(context.Context, flow.Message[string]) error { return nil }, nil, flow.Options{
		Observer: tel.Observer(),
		Sessions: &flow.SessionOptions{
			Store: store,
			Owner: func(ctx context.Context) (string, error) {
				if md, _ := metadata.FromIncomingContext(ctx); len(md.Get("flow-stranger")) > 0 {
					return "", errors.New("who is that?")
				}
				return "", nil
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range headers {
		md := metadata.MD{}
		for word := range strings.FieldsSeq(words) {
			key, value, _ := strings.Cut(word, "=")
			md.Set("flow-"+key, value)
		}
		ctx, cancel := context.WithCancel(metadata.NewIncomingContext(t.Context(), md))
		source := flowtest.NewSource(t, "x", "y")
		source.End()
		_, _ = f.Run(ctx, source.Recv)
		cancel()
	}
	time.Sleep(time.Minute) // for the last Saves
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	points, _ := collect(t, reader)
	return points
}

func TestMetricsCountSessionsAndTheirDuplicates(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := streams(t, nil, "session=a", "session=a", "session=b start=5", "session=a epoch=1", "session=a stranger=1", "")
		for point, want := range map[string]float64{
			"flow.sessions{flow.session.found=new}":     1,
			"flow.sessions{flow.session.found=known}":   1,
			"flow.sessions{flow.session.found=lost}":    1,
			"flow.sessions{flow.session.found=moved}":   1,
			"flow.sessions{flow.session.found=refused}": 1,
			"flow.messages{flow.outcome=duplicate}":     2,
			"flow.messages{flow.outcome=succeeded}":     6,
		} {
			if got[point] != want {
				t.Errorf("%s is %v, want %v", point, got[point], want)
			}
		}
		// A stream that may not have its session is the client's affair, and not a bug of the service's.
		if types := errorTypes(got, "flow.stream.duration"); !slices.Equal(types, []string{"FailureContextCancelled", "PERMISSION_DENIED"}) {
			t.Errorf("the streams' error.type is %v", types)
		}
	})
}

func TestMetricsCountFailedSavesOfSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := streams(t, failingAfter(1), "session=a") // that is the one that takes it
		if n := got["flow.session.saves{error.type=UNAVAILABLE}"]; n == 0 {
			t.Errorf("no failed save was counted: %v", got)
		}
	})
}

func TestSessionNamesAreInNoMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for saves := range int32(3) {
			got := streams(t, failingAfter(saves), "session=guessable", "session=guessable start=2", "session=guessable epoch=x")
			if len(got) == 0 {
				t.Error("there are no metrics")
			}
			for point := range got {
				if strings.Contains(point, "guessable") {
					t.Errorf("it is in %s", point)
				}
			}
		}
	})
}

func TestMetricsCountStreamsWhoseClientIsMistakenAboutItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := streams(t, nil, "session=a epoch=x", "session=a stranger=1")
		if n := got["flow.sessions{flow.session.found=refused}"]; n != 2 {
			t.Errorf("%v were refused, want 2: %v", n, got)
		}
	})
}

func TestMetricsCountStreamsThatAreRefusedTheirSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := streams(t, failingAfter(0), "session=a", "session=a")
		if n := got["flow.sessions{flow.session.found=refused}"]; n != 2 {
			t.Errorf("%v were refused, want 2: %v", n, got)
		}
	})
}
