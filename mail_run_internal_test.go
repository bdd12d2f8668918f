package flow

import (
	"context"
	"errors"
	"io"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestBusyKeysIsASetOfAFew(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b busyKeys
		in := map[uint64]bool{}
		for _, hash := range rapid.SliceOfN(rapid.Uint64Range(1, 200), 0, 60).Draw(t, "hashes") {
			hash *= 32 // many share a place
			room := len(in) < len(b.list)/2
			if ok := b.add(hash); ok != room {
				t.Fatalf("add() = %v with %d in it", ok, len(in))
			}
			if room {
				in[hash] = true
			}
		}
		for hash := uint64(1); hash <= 200*32; hash++ {
			if b.has(hash) != in[hash] {
				t.Fatalf("has(%d) = %v", hash, b.has(hash))
			}
		}
		if b.has(0) {
			t.Fatal("a message without order is of a busy key")
		}
		b.clear()
		for hash := range in {
			if b.has(hash) {
				t.Fatal("it is not empty")
			}
		}
	})
}

func TestBusyKeysAreSomeAndNoMore(t *testing.T) {
	var b busyKeys
	for i := range uint64(len(b.list) / 2) {
		if !b.add(i*64 + 1) {
			t.Fatalf("there is no room for %d", i+1)
		}
	}
	if b.add(3) {
		t.Error("it takes more than half of its places: to look for one takes long")
	}
}

// Messages that come quickly are run as they were received, until one does something else.
func TestMessageAfterManyQuickOnesMayDoAnything(t *testing.T) {
	const before, between, after = 5000, 300, 3000
	all := uint64(before + 1 + between + 1 + after)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		do     func(attempt int) error
		key    func() // of it
		action FailureAction
		want   Summary // Unsettled and Committed apart; zero if the stream fails
		kind   FailureKind
		ran    string // the attempts of it and of the later one of its key
	}{
		"succeed":        {want: Summary{Received: all, Succeeded: all}, ran: "x1 x2"},
		"stand still":    {do: func(int) error { time.Sleep(time.Hour); return nil }, want: Summary{Received: all, Succeeded: all}, ran: "x1 x2"},
		"fail at first":  {do: failsOnce(broken), want: Summary{Received: all, Succeeded: all, Retried: 1}, ran: "x1 x1 x2"},
		"fail and skip":  {do: func(int) error { return Permanent(broken) }, action: SkipMessage, want: Summary{Received: all, Succeeded: all - 1, Failed: 1}, ran: "x1 x2"},
		"skip its key":   {do: func(int) error { return Permanent(broken) }, action: SkipKey, want: Summary{Received: all, Succeeded: all - 2, Failed: 1, Rejected: 1}, ran: "x1"},
		"fail":           {do: func(int) error { return Permanent(broken) }, kind: FailureHandlerError, ran: "x1"},
		"panic":          {do: func(int) error { panic(broken) }, kind: FailureInternal, ran: "x1"},
		"Goexit":         {do: func(int) error { runtime.Goexit(); return nil }, kind: FailureInternal, ran: "x1"},
		"have no key":    {key: func() { panic(broken) }, kind: FailureInternal},
		"stand and fail": {do: func(int) error { time.Sleep(time.Hour); return Permanent(broken) }, action: SkipKey, want: Summary{Received: all, Succeeded: all - 2, Failed: 1, Rejected: 1}, ran: "x1"},
	} {
		for _, maxPending := range []int{300, 1024, 0} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var mu sync.Mutex
					last := map[string]uint64{}
					var ran []string
					handle := func(_ context.Context, m Message[string]) error {
						mu.Lock()
						if seq := last[m.Key]; m.Seq < seq || m.Seq == seq && m.Attempt == 1 {
							t.Errorf("message %d of key %q runs after %d", m.Seq, m.Key, seq)
						}
						last[m.Key] = m.Seq
						if m.Value[0] == 'x' {
							ran = append(ran, m.Value)
						}
						mu.Unlock()
						if m.Value == "x1" && c.do != nil {
							return c.do(m.Attempt)
						}
						return nil
					}
					f, err := New(handle, func(v string) string {
						if v == "x1" && c.key != nil {
							c.key()
						}
						return v[:1]
					}, Options{
						Ordering: OrderingOptions{Mode: OrderingKeyedFIFO}, MaxPending: maxPending, MaxPendingBytes: 1 << 30,
						Retry:     RetryOptions{MaxAttempts: 2, Backoff: time.Second},
						OnFailure: func(context.Context, *Failure) FailureAction { return c.action },
					})
					if err != nil {
						t.Fatal(err)
					}
					n := 0
					sum, err := f.Run(t.Context(), func() (string, error) {
						n++
						switch n {
						case before + 1:
							return "x1", nil
						case before + 1 + between + 1:
							return "x2", nil
						case int(all) + 1:
							return "", io.EOF
						}
						return string(rune('a' + n%20)), nil
					})
					synctest.Wait()
					if bytes := f.receiver.bytes.total.Load(); bytes != 0 {
						t.Errorf("%d bytes are left", bytes)
					}
					if sum.Received != sum.Succeeded+sum.Failed+sum.Rejected+sum.Dropped {
						t.Errorf("%+v does not add up", sum)
					}
					if got := strings.Join(ran, " "); got != c.ran {
						t.Errorf("of the key %q has run, want %q", got, c.ran)
					}
					if ClassifyFailure(err) != c.kind {
						t.Fatalf("Run() = %v, want %v", err, c.kind)
					}
					if c.kind == FailureNone {
						if c.want.Committed = all; sum.Unsettled != nil || sum.Committed != all {
							t.Errorf("committed %d, unsettled %v", sum.Committed, sum.Unsettled)
						}
						sum.Unsettled = nil
						if got := sum; got.Succeeded != c.want.Succeeded || got.Failed != c.want.Failed || got.Rejected != c.want.Rejected || got.Retried != c.want.Retried {
							t.Errorf("Run() = %+v, want %+v", got, c.want)
						}
					} else if sum.Failed == 0 || sum.Committed > before {
						t.Errorf("Run() = %+v", sum)
					}
				})
			})
		}
	}
}

func failsOnce(err error) func(int) error {
	return func(attempt int) error {
		if attempt == 1 {
			return err
		}
		return nil
	}
}
