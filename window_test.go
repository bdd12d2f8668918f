package flow_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowtest"
	"example.com/flow/internal/testkit"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// wantRead compares how many values a stream has read once everything has come to rest.
func wantRead(t testing.TB, c *testkit.Stream, want int) {
	t.Helper()
	synctest.Wait()
	if got := c.Received(); got != want {
		t.Fatalf("%d messages read, want %d", got, want)
	}
}

// many returns n values, each with a key of its own.
func many(n int) []string {
	values := make([]string, n)
	for i := range values {
		values[i] = fmt.Sprintf("k%dx", i)
	}
	return values
}

func TestStreamIsReadUpToMaxPendingAhead(t *testing.T) {
	for _, c := range []struct{ maxPending, want int }{
		{0, 1024}, {1, 1}, {3, 3}, {1024, 1024}, {2000, 2000}, {-1, 5000}, {math.MinInt, 5000},
	} {
		for _, ordering := range []flow.OrderingOptions{{}, testkit.Keyed, {Mode: flow.OrderingNone}} {
			t.Run(fmt.Sprint(c.maxPending, ordering.Mode), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := testkit.NewManualHandler()
					f := testkit.New(t, s.Handle, flow.Options{
						MaxPending: c.maxPending, Ordering: ordering, Backpressure: flow.BackpressureOptions{Capacity: 1},
					})
					r := testkit.Start(t, f, many(5000)...)
					wantRead(t, r, c.want)
				})
			})
		}
	}
}

// A reader is woken for an eighth of its window. Where keys that are stuck leave less than that, it is woken all the same.
func TestStreamIsReadIntoTheLittleRoomThatStuckKeysLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPending: 32, Ordering: testkit.Keyed})
		var values []string
		for i := range 31 {
			values = append(values, fmt.Sprintf("stuck%c1", 'a'+i))
		}
		c := testkit.Start(t, f, append(values, "free1", "free2", "free3")...)
		wantRead(t, c, 32)
		for _, v := range []string{"free1", "free2", "free3"} {
			s.Finish(t, v)
		}
		wantRead(t, c, 34)
		c.End()
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 34 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

func TestWhatFinishesMakesRoomForTheNextRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPending: 2, Ordering: testkit.Keyed})
		c := testkit.Start(t, f, "a1", "b1", "b2", "c1", "d1")
		s.WantRunning(t, "a1 b1")
		s.Finish(t, "b1")
		wantRead(t, c, 3)
		s.Finish(t, "b2")
		wantRead(t, c, 4)
		s.WantRunning(t, "a1 c1")
		s.Finish(t, "a1")
		wantRead(t, c, 5)
		c.End()
		s.FinishAll(t)
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 5 {
			t.Errorf("Run() = %+v, %v: nothing may be lost", sum, err)
		}
	})
}

func TestMaxPendingIsEachStreamsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPending: 2})
		one, two := testkit.Start(t, f, "a1", "a2", "a3"), testkit.Start(t, f, "b1", "b2", "b3")
		wantRead(t, one, 2)
		wantRead(t, two, 2)
		s.Finish(t, "a1")
		wantRead(t, one, 3)
		wantRead(t, two, 2)
	})
}

func TestRefusedMessagesMakeRoomToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			MaxPending:   2,
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
			OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
		})
		c := testkit.Start(t, f, "a1", "b1", "c1", "d1")
		c.End()
		wantRead(t, c, 4)
		s.Finish(t, "a1")
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 1 || sum.Rejected != 3 || sum.Committed != 4 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
	})
}

// bytesOf runs values of any T under MaxPendingBytes 100 and says how many are read while none finishes.
func bytesOf[T any](t *testing.T, values ...T) (read int) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		f, err := flow.New(func(ctx context.Context, m flow.Message[T]) error {
			<-ctx.Done()
			return ctx.Err()
		}, nil, flow.Options{MaxPendingBytes: 100})
		if err != nil {
			t.Fatal(err)
		}
		src := flowtest.NewSource(t, values...)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = f.Run(ctx, src.Recv) }()
		synctest.Wait()
		read = src.Received()
		cancel()
		<-done
	})
	return read
}

type sized struct{ n int }

func (s sized) Size() int { return s.n }

type (
	text string
	blob []byte
)

func TestBytesAreCountedByWhatTheMessageIs(t *testing.T) {
	// A message of proto.Size 50: two make 100, and a third is not read.
	pb := wrapperspb.String("0123456789012345678901234567890123456789" + "01234567")
	if n := proto.Size(pb); n != 50 {
		t.Fatalf("proto.Size is %d: the test is wrong", n)
	}
	forty := make([]byte, 40)
	for _, c := range []struct {
		name      string
		got, want int
	}{
		{"proto", bytesOf(t, pb, pb, pb, pb), 2},
		{"Size", bytesOf(t, sized{99}, sized{1}, sized{1}), 2},
		{"Size that is negative counts as nothing", bytesOf(t, sized{-50}, sized{60}, sized{60}, sized{1}), 3},
		{"string", bytesOf(t, string(forty), string(forty), string(forty), string(forty)), 3},
		{"a string type", bytesOf(t, text(forty), text(forty), text(forty), text(forty)), 3},
		{"bytes", bytesOf(t, forty, forty, forty, forty), 3},
		{"a bytes type", bytesOf(t, blob(forty), blob(forty), blob(forty), blob(forty)), 3},
		{"nil proto", bytesOf[*wrapperspb.StringValue](t, nil, nil, pb, pb, pb), 4},
		{"of no size", bytesOf(t, "", "", "", ""), 4},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d read, want %d", c.name, c.got, c.want)
		}
	}
}

func TestMessagesWithoutASizeCanHaveNoBytesLimit(t *testing.T) {
	refusesBytes[int](t)
	refusesBytes[struct{ A string }](t)
	refusesBytes[[]int](t)
	refusesBytes[[4]byte](t)
	refusesBytes[*string](t)
	refusesBytes[any](t)
	refusesBytes[error](t)
	for _, none := range []int64{0, -1} {
		_, err := flow.New(func(context.Context, flow.Message[int]) error { return nil }, nil, flow.Options{MaxPendingBytes: none})
		if err != nil {
			t.Errorf("with MaxPendingBytes %d: %v", none, err)
		}
	}
}

func refusesBytes[T any](t *testing.T) {
	t.Helper()
	_, err := flow.New(func(context.Context, flow.Message[T]) error { return nil }, nil, flow.Options{MaxPendingBytes: 77})
	wantRefusal(t, err, "MaxPendingBytes", "77")
}

// At the bound a stream is read below its share: the bound, here of 12, divided by the number of streams.
func TestMaxPendingBytesAtTheBoundAStreamIsReadUpToItsShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPendingBytes: 12, Ordering: testkit.Keyed})
		one := testkit.Start(t, f, "a1", "b1", "c1", "d1", "e1", "f1", "g1", "h1")
		wantRead(t, one, 6) // 12 bytes, checked before the read of the seventh
		two := testkit.Start(t, f, "i1", "j1", "k1", "l1")
		wantRead(t, two, 3) // its share of 6
		s.Finish(t, "i1")   // 4 bytes of a share of 6
		wantRead(t, two, 4)
		s.Finish(t, "a1", "b1") // the total is still above the bound
		wantRead(t, one, 6)
		s.Finish(t, "j1", "k1", "l1") // 8 bytes are pending in all
		wantRead(t, one, 8)
		one.End()
		two.End()
		s.FinishAll(t)
		for c, n := range map[*testkit.Stream]uint64{one: 8, two: 4} {
			if sum, err := c.Result(t); err != nil || sum.Succeeded != n {
				t.Errorf("Run() = %+v, %v", sum, err)
			}
		}
	})
}

func TestMaxPendingBytesBelowTheBoundAnotherStreamsFinishMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{MaxPendingBytes: 8, Ordering: testkit.Keyed})
		one := testkit.Start(t, f, "a1", "b1", "c1", "f1")
		two := testkit.Start(t, f, "d1", "e1", "g1")
		wantRead(t, one, 4)
		wantRead(t, two, 2) // 12 are pending, and 4 is its share
		s.Finish(t, "a1", "b1")
		wantRead(t, two, 2)
		s.Finish(t, "c1")
		wantRead(t, two, 3)
	})
}

// A stream that stands still fills the bound. Beside it the others have 16 messages in flight each, which is their share,
// and not one.
func TestMaxPendingBytesOneDeafStreamMakesNoOtherSerial(t *testing.T) {
	const others, share, each = 4, 16, 48
	message := func(name string) string { return (name + "xxxxxxxxxx")[:10] }
	for _, bound := range []int64{10 * share * (others + 1), 10*share*(others+1) - 9} { // rounded up, that is the same
		synctest.Test(t, func(t *testing.T) {
			release := make(chan struct{})
			f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
				if m.Value[0] == 'd' {
					<-release
					return nil
				}
				return testkit.Takes(time.Second)(ctx, m)
			}, flow.Options{MaxPendingBytes: bound, Ordering: flow.OrderingOptions{Mode: flow.OrderingNone}})
			deaf := testkit.Start(t, f, slices.Repeat([]string{message("d")}, 1000)...)
			wantRead(t, deaf, share*(others+1))
			began := time.Now()
			var calls []*testkit.Stream
			for range others {
				calls = append(calls, testkit.Start(t, f))
			}
			for _, c := range calls {
				c.Send(slices.Repeat([]string{message("o")}, each)...)
				c.End()
			}
			for _, c := range calls {
				<-c.Done
				if sum, err := c.Result(t); err != nil || sum.Succeeded != each {
					t.Errorf("Run() = %+v, %v", sum, err)
				}
			}
			if took := time.Since(began); took != each/share*time.Second {
				t.Errorf("%d messages of a second took %v beside a stream that stands still, want %d at a time", each, took, share)
			}
			deaf.Cancel(nil)
			close(release)
		})
	}
}

func TestMaxPendingBytesSharesFollowTheNumberOfStreams(t *testing.T) {
	for name, end := range map[string]func(c *testkit.Stream){
		"it ends well":    func(c *testkit.Stream) { c.End() },
		"it is cancelled": func(c *testkit.Stream) { c.Cancel(nil) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := testkit.NewManualHandler()
				f := testkit.New(t, s.Handle, flow.Options{MaxPendingBytes: 12, Ordering: testkit.Keyed})
				full := testkit.Start(t, f, "a1", "b1", "c1", "d1", "e1", "f1", "g1")
				wantRead(t, full, 6)
				idle := testkit.Start(t, f)
				waits := testkit.Start(t, f, "h1", "i1", "j1", "k1", "l1")
				wantRead(t, waits, 2) // of three streams: 4 bytes each
				fourth := testkit.Start(t, f)
				fifth := testkit.Start(t, f)
				s.Finish(t, "h1") // of five: 2.4 bytes each, of which it has 2
				wantRead(t, waits, 3)
				end(fourth)
				end(fifth)
				time.Sleep(time.Second) // a recv that is blocked gets a moment to say why its context has ended
				wantRead(t, waits, 3)   // of three again: 4 bytes each, which it has
				end(idle)
				time.Sleep(time.Second)
				wantRead(t, waits, 4) // of two: 6 bytes
				end(full)
				full.Cancel(nil)
				wantRead(t, waits, 5)
			})
		})
	}
}

// Streams that come one after the other, and of which none gets on, have each a smaller share than the one before. All of
// these shares together would grow without bound.
func TestMaxPendingBytesTotalIsAtMostTwiceTheBoundAndAMessageAStream(t *testing.T) {
	const streams, bound, size = 30, 600, 5
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, func(ctx context.Context, m flow.Message[string]) error {
			<-ctx.Done()
			return ctx.Err()
		}, flow.Options{MaxPendingBytes: bound, Ordering: testkit.Keyed})
		var all []*testkit.Stream
		total := 0
		for range streams {
			c := testkit.Start(t, f, slices.Repeat([]string{"xxxxx"}, bound)...)
			synctest.Wait()
			if c.Received() == 0 {
				t.Errorf("stream %d is not read at all", len(all)+1)
			}
			total += c.Received() * size
			all = append(all, c)
		}
		if most := 2*bound + streams*size; total > most || total < 2*bound {
			t.Errorf("%d bytes are pending, want at least %d, and at most %d", total, 2*bound, most)
		}
	})
}

func TestMaxPendingBytesIs64MiBWhereMessagesHaveASize(t *testing.T) {
	mebibyte := strings.Repeat("x", 1<<20)
	values := slices.Repeat([]string{mebibyte}, 100)
	never := func(ctx context.Context, _ flow.Message[string]) error { <-ctx.Done(); return ctx.Err() }
	for name, c := range map[string]struct {
		bytes int64
		want  int
	}{"default": {0, 64}, "unbounded": {-1, 100}, "the least there is": {math.MinInt64, 100}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				wantRead(t, testkit.Start(t, testkit.New(t, never, flow.Options{MaxPendingBytes: c.bytes}), values...), c.want)
			})
		})
	}
	t.Run("of a Receiver alone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			r := flow.NewReceiver(flow.NewGate(nil, nil, nil), flow.NewEngine(never, flow.RetryOptions{}))
			wantRead(t, receive(t, r, testkit.KeyOf, values...), 64)
		})
	})
}

// The bytes must come back to zero whatever becomes of the messages: else the next stream is read one by one.
func TestBytesComeBackToZeroInEveryEnding(t *testing.T) {
	const n = 10
	full := flow.Options{MaxPendingBytes: 2 * n, Ordering: testkit.Keyed}
	skip := func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage }
	panics := func(context.Context, flow.Message[string]) error { panic("here") }
	synctest.Test(t, func(t *testing.T) {
		for name, end := range map[string]func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream){
			"success": func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) { s.FinishAll(t) },
			"failure": func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) { s.Fail(t, "a1", testkit.ErrHandler) },
			"panic": func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) {
				s.EndWith(t, "a1", func() error { return panics(nil, flow.Message[string]{}) })
			},
			"cancel": func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) { c.Cancel(nil) },
			"key":    func(t *testing.T, s *testkit.ManualHandler, c *testkit.Stream) { c.Send("!1"); s.Finish(t, "a1") },
		} {
			o := full
			o.OnFailure = skip
			if name == "failure" {
				o.OnFailure = nil
			}
			s := testkit.NewManualHandler()
			f, err := flow.New(s.Handle, func(v string) string {
				if v == "!1" {
					panic("no key")
				}
				return testkit.KeyOf(v)
			}, o)
			if err != nil {
				t.Fatal(err)
			}
			c := testkit.Start(t, f, "a1", "b1", "a2", "a3", "b2", "c1", "a4", "a5", "a6", "a7")
			wantRead(t, c, n)
			end(t, s, c)
			c.End()
			s.FinishAll(t)
			if !c.Ended() {
				t.Fatalf("%s: Run has not returned", name)
			}
			next := testkit.Start(t, f, many(n)...)
			wantRead(t, next, 7) // of 3 bytes each: the seventh is read at 18 of 20, the eighth not at 21
		}
	})
}

const idle = 10 * time.Second

// wantIdleEnd says that c lives until d from now and not longer, and ends by the idle timeout.
func wantIdleEnd(t *testing.T, c *testkit.Stream, d time.Duration) {
	t.Helper()
	testkit.Advance(d - 1)
	if c.Ended() {
		t.Fatal("the stream has ended too early")
	}
	testkit.Advance(1)
	_, err := c.Result(t)
	testkit.FailureOf(t, err, flow.FailureContextCancelled)
	if code := status.Code(err); code != codes.DeadlineExceeded {
		t.Errorf("code is %v, want DeadlineExceeded", code)
	}
}

func TestStreamFromWhichNothingComesEndsAfterIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		wantIdleEnd(t, testkit.Start(t, testkit.New(t, testkit.Succeed, flow.Options{IdleTimeout: idle})), idle)
	})
}

func TestIdleTimeoutRunsFromTheLastReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testkit.Start(t, testkit.New(t, testkit.Succeed, flow.Options{IdleTimeout: idle}))
		for range 5 {
			testkit.Advance(idle - 1)
			c.Send("a1")
		}
		wantIdleEnd(t, c, idle)
		if sum, _ := c.Result(t); sum.Succeeded != 5 || sum.Committed != 5 {
			t.Errorf("summary is %+v, want 5 succeeded", sum)
		}
	})
}

func TestIdleTimeoutRunsFromTheLastFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{IdleTimeout: idle, Ordering: testkit.Keyed}), "a1", "b1")
		testkit.Advance(3 * idle) // something is pending
		s.Finish(t, "a1")
		testkit.Advance(3*idle + 7)
		s.Finish(t, "b1")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileAMessageWaitsForItsNextTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			IdleTimeout: idle, Retry: flow.RetryOptions{MaxAttempts: 2, Backoff: 5 * idle},
		})
		c := testkit.Start(t, f, "a1")
		s.Fail(t, "a1", testkit.ErrHandler)
		testkit.Advance(5 * idle)
		s.WantRunning(t, "a1")
		s.Finish(t, "a1")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileTheStreamIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{IdleTimeout: idle, MaxPending: 1}), "a1", "a2")
		testkit.Advance(5 * idle)
		s.Finish(t, "a1")
		testkit.Advance(5 * idle)
		s.Finish(t, "a2")
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileTheReceiverIsInTheCallersFunctions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := flow.New(testkit.Succeed, func(string) string { time.Sleep(3 * idle); return "" }, flow.Options{IdleTimeout: idle})
		if err != nil {
			t.Fatal(err)
		}
		c := testkit.Start(t, f, "a1")
		testkit.Advance(3 * idle) // the key function; the message finishes at once
		wantIdleEnd(t, c, idle)
	})
}

func TestIdleTimeoutDoesNotRunWhileOnFailureDecidesOnReceipt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		f := testkit.New(t, s.Handle, flow.Options{
			IdleTimeout:  idle,
			Backpressure: flow.BackpressureOptions{Policy: flow.BackpressureHardReject, Capacity: 1},
			OnFailure: func(context.Context, *flow.Failure) flow.FailureAction {
				time.Sleep(3 * idle)
				return flow.SkipMessage
			},
		})
		c := testkit.Start(t, f, "a1", "b1")
		s.Finish(t, "a1")
		testkit.Advance(3 * idle)
		wantIdleEnd(t, c, idle)
	})
}

func TestWithoutIdleTimeoutAStreamWaitsForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := testkit.Start(t, testkit.New(t, testkit.Succeed, flow.Options{}))
		testkit.Advance(10000 * time.Hour)
		if c.Ended() {
			t.Error("the stream has ended")
		}
	})
}

func TestIdleTimeoutIsEachStreamsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := testkit.New(t, testkit.Succeed, flow.Options{IdleTimeout: idle})
		one := testkit.Start(t, f)
		testkit.Advance(idle / 2)
		two := testkit.Start(t, f)
		wantIdleEnd(t, one, idle/2)
		wantIdleEnd(t, two, idle/2)
	})
}

func TestStreamThatEndsInTimeIsNotTouchedByItsIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := testkit.NewManualHandler()
		c := testkit.Start(t, testkit.New(t, s.Handle, flow.Options{IdleTimeout: idle}), "a1")
		c.End()
		testkit.Advance(2 * idle)
		s.Finish(t, "a1")
		if sum, err := c.Result(t); err != nil || sum.Succeeded != 1 {
			t.Errorf("Run() = %+v, %v", sum, err)
		}
		testkit.Advance(2 * idle)
	})
}
