package sessiontest_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestStartBelowCommitted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		p := new(testkit.EventLog)
		f := withSessions(t, s.Handle, nil, func(o *flow.Options) { o.Observer = p.Observe })
		r := resume(t, f, "", "a1", "b2", "c3")
		s.Finish(t, "a1", "c3")
		r.breaks()
		r.wantEnd(t, "Canceled CONTEXT_CANCELLED", "epoch 1 committed 1")
		r = resume(t, f, "epoch=1", "a1", "b2", "c3", "d4") // all of it again
		r.wantHeader(t, "known epoch 1 committed 1")
		s.WantRunning(t, "b2 d4")
		s.FinishAll(t)
		r.End()
		sum := r.wantEnd(t, "OK", "epoch 1 committed 4")
		if want := (flow.Summary{Received: 4, Succeeded: 2, Committed: 4, Last: 4, Duplicates: 2}); !reflect.DeepEqual(sum, want) {
			t.Errorf("%+v, want %+v", sum, want)
		}
		var duplicates []uint64
		for _, e := range p.Of(flow.EventDuplicate) {
			duplicates = append(duplicates, e.Seq)
		}
		if !slices.Equal(duplicates, []uint64{1, 3}) {
			t.Errorf("told of duplicates %v", duplicates)
		}
	})
}

func TestStartBeyondReceived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := new(testkit.EventLog)
		store := flow.NewSessionMemory(0, 0)
		f := withSessions(t, testkit.Takes(0), store, func(o *flow.Options) { o.Observer = p.Observe })
		uploadOK(t, f, "", "a1", "b2")
		r := resume(t, f, "epoch=1 start=10", "c10")
		r.wantHeader(t, "lost epoch 1 committed 9")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 10")
		var found []string
		for _, e := range p.Of(flow.EventSession) {
			found = append(found, e.Found)
			if e.Session.ID != uploadID || e.Session.Epoch != 1 || e.Session.Fence != 1 {
				t.Errorf("told of session %+v", e.Session)
			}
		}
		if !slices.Equal(found, []string{"new", "lost"}) {
			t.Errorf("found: %v", found)
		}
		if got := stored(t, store); got != "epoch 1 fence 1 committed 10" {
			t.Errorf("the store has %s", got)
		}
	})
}

func TestSkipBelowAndAbove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, nil)
		r := resume(t, f, "", "a1", "b2", "c3")
		s.Finish(t, "a1", "c3")
		r.breaks()
		r.wantEnd(t, "Canceled CONTEXT_CANCELLED", "epoch 1 committed 1")

		resume(t, f, "epoch=1 start=3 skip=2").wantEnd(t, "InvalidArgument INTERNAL", "")
		r = resume(t, f, "epoch=1 start=2 skip=2") // a hole, and nothing else to send
		r.wantHeader(t, "known epoch 1 committed 3")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 3")

		r = resume(t, f, "epoch=1 start=4 skip=4") // the next number, which is never sent
		r.wantHeader(t, "known epoch 1 committed 4")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 4")

		r = resume(t, f, "epoch=1 start=5 skip=6,4611686018427387904", "e5", "f6", "g7") // far above
		r.wantHeader(t, "known epoch 1 committed 4")
		s.WantRunning(t, "e5 g7")
		s.Finish(t, "g7")
		r.wantHeader(t, "known epoch 1 committed 4")
		s.Finish(t, "e5")
		r.End()
		sum := r.wantEnd(t, "OK", "epoch 1 committed 7")
		if sum.Duplicates != 1 || sum.Last != 7 || len(sum.Unsettled) > 0 {
			t.Errorf("%+v", sum)
		}
	})
}

func TestDuplicateTakesNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var keys []string
		s := testkit.NewManualHandler()
		f, err := flow.New(s.Handle, func(v string) string { keys = append(keys, v); return testkit.KeyOf(v) }, flow.Options{
			Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO, Capacity: 1, KeyCapacity: 1},
			Sessions: &flow.SessionOptions{}, MaxPending: 1,
			Backpressure: flow.BackpressureOptions{Capacity: 1, Policy: flow.BackpressureHardReject},
		})
		if err != nil {
			t.Fatal(err)
		}
		r := resume(t, f, "", "a1")
		s.Finish(t, "a1")
		r.Send("a2")
		s.Finish(t, "a2")
		r.Send("a3")
		s.WantRunning(t, "a3")
		r.breaks()
		r.wantEnd(t, "Canceled CONTEXT_CANCELLED", "epoch 1 committed 2")

		keys = nil
		r = resume(t, f, "epoch=1 start=2 skip=5,6", "a2", "a3")
		s.WantRunning(t, "a3") // which takes the one place that there is
		r.Send("a4", "a5", "a6")
		if n := r.Received(); n != 2 {
			t.Errorf("%d were received although one is pending and no more may be", n)
		}
		s.Finish(t, "a3")
		s.WantRunning(t, "a4")
		s.Finish(t, "a4")
		r.End()
		sum := r.wantEnd(t, "OK", "epoch 1 committed 6")
		if sum.Duplicates != 3 || sum.Rejected > 0 {
			t.Errorf("%+v", sum)
		}
		if got := strings.Join(keys, " "); got != "a3 a4" {
			t.Errorf("the key function was asked for %q", got)
		}
	})
}

func TestDuplicatesAreReadAlthoughSlotsAreTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, nil, func(o *flow.Options) { o.Backpressure.Capacity = 1 })
		var values []string
		for i := range 500 {
			values = append(values, fmt.Sprint("a", i+1))
		}
		r := resume(t, f, "", values...)
		s.FinishAll(t)
		r.breaks()
		r.wantEnd(t, "Canceled CONTEXT_CANCELLED", "epoch 1 committed 500")
		c := testkit.Start(t, f, "z") // holds the slot
		s.WantRunning(t, "z")
		r = resume(t, f, "epoch=1", values...)
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 500")
		if r.Sum.Duplicates != 500 {
			t.Errorf("%+v", r.Sum)
		}
		s.Finish(t, "z")
		c.End()
	})
}

func TestSummaryOfASession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		p := new(testkit.EventLog)
		f := withSessions(t, s.Handle, nil, func(o *flow.Options) { o.Observer = p.Observe })
		r := resume(t, f, "start=11", "a", "b", "c", "d")
		s.Finish(t, "b", "d")
		if got := f.Snapshot(1).Streams[0]; got.Committed != 10 || got.Received != 4 || got.Pending != 2 || got.Session.ID != uploadID {
			t.Errorf("under way: %+v", got)
		}
		s.Fail(t, "a", testkit.ErrHandler)
		// A failure ends its stream; the session lives.
		sum := r.wantEnd(t, "Unknown HANDLER_ERROR", "epoch 1 committed 10 failed 11")
		want := flow.Summary{Received: 4, Succeeded: 2, Failed: 2, Committed: 10, Unsettled: []uint64{11, 13}, Last: 14}
		if !reflect.DeepEqual(sum, want) {
			t.Errorf("%+v, want %+v", sum, want)
		}
		if pr := sum.Progress(); pr.Committed() != 10 || !pr.Settled(12) || pr.Settled(13) || !pr.Settled(14) || pr.Settled(15) {
			t.Errorf("progress is %v", pr)
		}
		if got, ok := flow.ProgressFromTrailer(r.rpc.trailer); !ok || !reflect.DeepEqual(got, sum.Progress()) {
			t.Errorf("the trailers say %v, %v", got, ok)
		}

		r = resume(t, f, "epoch=1 start=11", "a", "b")
		s.Finish(t, "a")
		r.End()
		sum = r.wantEnd(t, "OK", "epoch 1 committed 12") // 13 is a hole that this stream has not come to
		want = flow.Summary{Received: 2, Succeeded: 1, Duplicates: 1, Committed: 12, Unsettled: []uint64{13}, Last: 14}
		if !reflect.DeepEqual(sum, want) {
			t.Errorf("%+v, want %+v", sum, want)
		}
		total := f.Stats().Total
		if want := (flow.Summary{Received: 6, Succeeded: 3, Failed: 2, Duplicates: 1}); !reflect.DeepEqual(total, want) {
			t.Errorf("of all streams: %+v, want %+v", total, want)
		}
		ends := p.Of(flow.EventStreamEnd)
		if e := ends[len(ends)-1]; !reflect.DeepEqual(e.Summary, sum) || e.Session.ID != uploadID {
			t.Errorf("told of %+v", e)
		}
	})
}

func TestSkipKeyOutlivesStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var failed []string
		action := flow.SkipKey
		store := flow.NewSessionMemory(0, 0)
		s := testkit.NewManualHandler()
		newFlow := func() *flow.Flow[string] {
			return withSessions(t, s.Handle, store, func(o *flow.Options) {
				o.OnFailure = func(_ context.Context, f *flow.Failure) flow.FailureAction {
					failed = append(failed, fmt.Sprint(f.Value, " ", f.Kind))
					return action
				}
			})
		}
		r := resume(t, newFlow(), "", "a1", "b2")
		s.Fail(t, "a1", testkit.ErrHandler)
		s.Finish(t, "b2")
		r.breaks()
		r.wantEnd(t, "Canceled CONTEXT_CANCELLED", "epoch 1 committed 2")
		r = resume(t, newFlow(), "epoch=1 start=3", "a3", "b4", "a5") // in another process
		s.WantRunning(t, "b4")
		s.FinishAll(t)
		r.End()
		sum := r.wantEnd(t, "OK", "epoch 1 committed 5")
		if sum.Rejected != 2 || sum.Succeeded != 1 {
			t.Errorf("%+v", sum)
		}
		want := []string{"a1 FailureHandlerError", "a3 FailureOrdering", "a5 FailureOrdering"}
		if !slices.Equal(failed, want) {
			t.Errorf("OnFailure saw %v, want %v", failed, want)
		}
		state, _, _ := store.Load(context.Background(), uploadID)
		if !slices.Equal(state.GivenUp, []string{"a"}) {
			t.Errorf("the store has %v", state.GivenUp)
		}
	})
}

// A store that fails last does not know of the key: so the client is not told that the message with which it was skipped is
// settled, sends it again, and the key is skipped again.
func TestSkipKeyThatIsNotSavedIsNotAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		store := testkit.NewHookedStore()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) {
			o.OnFailure = func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey }
		})
		r := resume(t, f, "", "a1", "b2")
		s.Finish(t, "a1")
		s.Fail(t, "b2", testkit.ErrHandler)
		testkit.Advance(2 * time.Second) // it is saved
		store.SetBefore(func(context.Context, string, int) error { return testkit.ErrHandler })
		r.Send("d3", "c4", "c5", "b6")
		s.Finish(t, "d3")
		s.Fail(t, "c4", testkit.ErrHandler)
		r.End()
		if sum := r.wantEnd(t, "OK", "epoch 1 committed 3"); sum.Committed != 6 {
			t.Errorf("%+v", sum)
		}
		store.SetBefore(nil)
		r = resume(t, f, "epoch=1 start=4", "c4", "c5", "b6")
		s.Finish(t, "c4") // it succeeds this time, and so may what is behind it
		s.Finish(t, "c5")
		r.End()
		if sum := r.wantEnd(t, "OK", "epoch 1 committed 6"); sum.Rejected != 1 || sum.Succeeded != 2 {
			t.Errorf("%+v", sum)
		}
	})
}

func TestSkipKeyIsBoundedInASession(t *testing.T) {
	for name, c := range map[string]struct {
		key  string
		most int // skipped keys that are accepted
	}{
		"1,024 keys":     {"%04d", 1024},
		"64 KiB of them": {strings.Repeat("x", 1020) + "%04d", 64},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f, err := flow.New(
					func(context.Context, flow.Message[string]) error { return testkit.ErrHandler },
					func(v string) string { return v },
					flow.Options{
						Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}, Sessions: &flow.SessionOptions{},
						OnFailure: func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipKey },
					})
				if err != nil {
					t.Fatal(err)
				}
				var values []string
				for i := range c.most {
					values = append(values, fmt.Sprintf(c.key, i))
				}
				if sum := uploadOK(t, f, "", values...); sum.Failed != uint64(c.most) || sum.Committed != uint64(c.most) {
					t.Errorf("%d keys: %+v", c.most, sum)
				}
				// It is not settled: behind it the client would go on with messages of a key that nobody knows to be skipped.
				r := resume(t, f, fmt.Sprint("epoch=1 start=", c.most+1), "one more")
				sum, err := r.Result(t)
				testkit.FailureOf(t, err, flow.FailureOrdering)
				if sum.Failed != 1 || sum.Committed != uint64(c.most) || status.Code(err) != codes.FailedPrecondition {
					t.Errorf("one more: %+v, %v", sum, err) // with a code after which no client comes again by itself
				}
			})
		})
	}
}

func TestHolesStayBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const pending = 16
		store := flow.NewSessionMemory(0, 0)
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) { o.MaxPending = pending })
		var values []string
		for i := range 400 {
			values = append(values, fmt.Sprintf("%c%d", 'a'+i%26, i+1))
		}
		headers := ""
		for stream := range 30 {
			r := resume(t, f, headers, values...)
			for range 3 * pending { // all but the oldest that runs settles
				now := strings.Fields(s.Running())
				if len(now) < 2 {
					break
				}
				s.Finish(t, now[len(now)-1])
			}
			r.breaks()
			sum, _ := r.Result(t)
			if n := len(sum.Unsettled); n > pending {
				t.Fatalf("after stream %d there are %d holes", stream, n)
			}
			state, _, _ := store.Load(context.Background(), uploadID)
			if !reflect.DeepEqual(state.Progress, sum.Progress()) {
				t.Fatalf("the store has %v, want %v", state.Progress, sum.Progress())
			}
			headers = "epoch=1"
		}
		o := flow.Options{Sessions: &flow.SessionOptions{}, MaxPending: -1}
		_, err := flow.New(s.Handle, nil, o)
		if err == nil || !strings.Contains(err.Error(), "MaxPending") || !strings.Contains(err.Error(), "-1") {
			t.Errorf("a negative MaxPending with sessions: %v", err)
		}
	})
}

func TestSessionOptionsAreValidated(t *testing.T) {
	for want, o := range map[string]flow.SessionOptions{
		"flow: Options.Sessions.SaveEvery must not be negative (got -1ns)": {SaveEvery: -1},
		"flow: Options.Sessions.Takeover must not be negative (got -1s)":   {Takeover: -time.Second},
	} {
		if _, err := flow.New(testkit.Takes(0), nil, flow.Options{Sessions: &o}); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func TestSessionsNobodyAskedForAreNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withSessions(t, func(_ context.Context, m flow.Message[string]) error {
			if m.Session() != (flow.Session{}) {
				t.Errorf("a session: %v", m.Session())
			}
			return nil
		}, nil)
		c := testkit.Start(t, f, "a1")
		c.End()
		sum, err := c.Result(t)
		if want := (flow.Summary{Received: 1, Succeeded: 1, Committed: 1, Last: 1}); err != nil || !reflect.DeepEqual(sum, want) {
			t.Errorf("%+v, %v", sum, err)
		}
		// And what a client asks for is ignored by a Flow without sessions.
		plain := testkit.New(t, testkit.Takes(0), flow.Options{})
		r := resume(t, plain, "start=x epoch=9", "a1")
		r.End()
		r.wantEnd(t, "OK", "committed 1")
		r.wantHeader(t, "")
	})
}

func TestOwnersDontMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := flow.NewSessionMemory(0, 0)
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, store, func(o *flow.Options) {
			o.Sessions.Owner = func(ctx context.Context) (string, error) {
				md, _ := metadata.FromIncomingContext(ctx)
				switch name := strings.Join(md.Get("flow-who"), ""); name {
				case "":
					return "", errors.New("who is it?")
				case "nobody":
					return "", status.Error(codes.Unauthenticated, "no token")
				case "panic":
					panic("owner")
				case "exit":
					runtime.Goexit()
					return "", nil
				default:
					return name, nil
				}
			}
		})
		ann := resume(t, f, "who=ann", "a1")
		bob := resume(t, f, "who=bob", "b1") // the same name
		ann.wantHeader(t, "new epoch 1 committed 0")
		bob.wantHeader(t, "new epoch 1 committed 0")
		s.WantRunning(t, "a1 b1")
		resume(t, f, "").wantEnd(t, "PermissionDenied INTERNAL", "")
		resume(t, f, "who=nobody").wantEnd(t, "Unauthenticated INTERNAL", "")
		resume(t, f, "who=panic").wantEnd(t, "Internal INTERNAL", "")
		resume(t, f, "who=exit").wantEnd(t, "Internal INTERNAL", "")
		s.FinishAll(t)
		ann.End()
		bob.End()
		ann.wantEnd(t, "OK", "epoch 1 committed 1")
		bob.wantEnd(t, "OK", "epoch 1 committed 1")
		if st, v, _ := store.Load(context.Background(), flow.SessionID{Owner: "ann", Name: "upload"}); v == 0 || st.Progress.Committed() != 1 {
			t.Errorf("ann's is %+v", st)
		}
		if _, v, _ := store.Load(context.Background(), uploadID); v != 0 {
			t.Error("nobody's session was made")
		}
	})
}

func TestOwnerIsCancelledWithItsStream(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(*flow.Flow[string], *resumed)
		want string
	}{
		"Close": {func(f *flow.Flow[string], _ *resumed) { _ = f.Close() }, "Unavailable SHUTDOWN retry"},
		"end of grace": {func(f *flow.Flow[string], _ *resumed) {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			_ = f.Shutdown(ctx)
		}, "Unavailable SHUTDOWN retry"},
		"client gone": {func(_ *flow.Flow[string], r *resumed) { r.Cancel(nil) }, "Canceled CONTEXT_CANCELLED"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := withSessions(t, testkit.Takes(0), nil, func(o *flow.Options) {
					o.Sessions.Owner = func(ctx context.Context) (string, error) {
						<-ctx.Done()
						return "", ctx.Err()
					}
				})
				r := resume(t, f, "")
				c.end(f, r)
				r.wantEnd(t, c.want, "")
			})
		})
	}
}

func TestMalformedIsRefusedAsThatDuringAShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withSessions(t, testkit.Takes(0), nil)
		_ = f.Close()
		resume(t, f, "start=0").wantEnd(t, "InvalidArgument INTERNAL", "")
		resume(t, f, "start=1").wantEnd(t, "Unavailable SHUTDOWN retry", "")
	})
}

func TestNamesInNoStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const name = "very-secret-name"
		store := testkit.NewHookedStore()
		s := testkit.NewManualHandler()
		f := withSessions(t, stubborn(s), store, func(o *flow.Options) { o.Sessions.Takeover = time.Second })
		run := func(headers string) *resumed { return resume(t, f, "session="+name+" "+headers, "a1") }
		old := run("")
		busy := run("epoch=1")
		testkit.Advance(time.Second)
		s.Finish(t, "a1")
		store.SetBefore(func(_ context.Context, call string, _ int) error {
			return fmt.Errorf("no such row: %s", name)
		})
		failing := run("epoch=1")
		for reason, r := range map[string]*resumed{"moved": old, "busy": busy, "store": failing, "malformed": run("start=" + "0")} {
			_, err := r.Result(t)
			if err == nil {
				t.Fatalf("%s: it ended well", reason)
			}
			if st := status.Convert(err); strings.Contains(st.String(), name) || strings.Contains(err.Error(), name) || st.Message() == "" {
				t.Errorf("%s: %v, %v", reason, st, err)
			}
		}
	})
}

func TestRunWithoutGRPC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := withSessions(t, testkit.Takes(0), nil)
		run := func(values ...string) flow.Summary {
			source := flowtest.NewSource(t, values...)
			source.End()
			ctx := metadata.NewIncomingContext(context.Background(), metadata.Pairs("flow-session", "upload"))
			sum, err := f.Run(ctx, source.Recv)
			if err != nil {
				t.Fatal(err)
			}
			return sum
		}
		run("a1", "a2")
		if sum := run("a1", "a2", "a3"); sum.Duplicates != 2 || sum.Succeeded != 1 || sum.Committed != 3 {
			t.Errorf("%+v", sum)
		}
	})
}

func TestInUseIsNotForgottenByItsFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := flow.NewSessionMemory(2, time.Hour)
		s := testkit.NewManualHandler()
		f := withSessions(t, s.Handle, store)
		r := resume(t, f, "", "a1")
		for i := range 10 {
			uploadOK(t, f, fmt.Sprint("session=other", i))
		}
		testkit.Advance(48 * time.Hour)
		s.Finish(t, "a1")
		r.End()
		r.wantEnd(t, "OK", "epoch 1 committed 1")
		if got := stored(t, store); got != "epoch 1 fence 1 committed 1" {
			t.Errorf("the store has %s", got)
		}
	})
}

func TestHeaderBefore1stReadOfRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := false
		tr := &transport{}
		f := withSessions(t, testkit.Takes(0), nil)
		ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("flow-session", "upload"))
		_, err := f.Run(grpc.NewContextWithServerTransportStream(ctx, tr), func() (string, error) {
			tr.mu.Lock()
			reads = tr.sent
			tr.mu.Unlock()
			return "", testkit.ErrHandler
		})
		if err == nil || !reads {
			t.Errorf("the first read came before the header: %v", err)
		}
	})
}

func TestHeldHeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := testkit.NewManualHandler()
		f := withSessions(t, st.Handle, nil)
		held := &transport{holds: true}
		r := resumeOver(t, f, held, "", "a1", "b2")
		st.WantRunning(t, "a1 b2")
		st.FinishAll(t)
		r.End()
		r.wantHeader(t, "")
		r.wantEnd(t, "OK", "epoch 1 committed 2")
	})
}
