package flowclient_test

import (
	"context"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/flowclient"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

func TestSenderOptionsThatMeanNothingAreRefused(t *testing.T) {
	open := func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[request, reply], error) {
		return nil, nil
	}
	for _, c := range []struct {
		o    flowclient.Options
		says string
	}{
		{flowclient.Options{Session: "a b"}, `flowclient: Options.Session must consist of bytes from '!' to '~' (got "a b")`},
		{flowclient.Options{Session: "é"}, `flowclient: Options.Session must consist of bytes from '!' to '~' (got "é")`},
		{flowclient.Options{Session: strings.Repeat("x", 129)}, "flowclient: Options.Session must be at most 128 bytes long (got 129 bytes)"},
		{flowclient.Options{MaxBuffered: -1}, "flowclient: Options.MaxBuffered must not be negative (got -1)"},
		{flowclient.Options{MaxBufferedBytes: -1}, "flowclient: Options.MaxBufferedBytes must not be negative (got -1)"},
		{flowclient.Options{MaxMessageBytes: -1}, "flowclient: Options.MaxMessageBytes must not be negative (got -1)"},
		{flowclient.Options{MaxStreamAge: -1}, "flowclient: Options.MaxStreamAge must not be negative (got -1ns)"},
		{flowclient.Options{AnswerTimeout: -1}, "flowclient: Options.AnswerTimeout must not be negative (got -1ns)"},
		{flowclient.Options{HeaderTimeout: -1}, "flowclient: Options.HeaderTimeout must not be negative (got -1ns)"},
		{flowclient.Options{Backoff: -1}, "flowclient: Options.Backoff must not be negative (got -1ns)"},
		{flowclient.Options{MaxBackoff: -1}, "flowclient: Options.MaxBackoff must not be negative (got -1ns)"},
		{flowclient.Options{GiveUpAfter: -1}, "flowclient: Options.GiveUpAfter must not be negative (got -1ns)"},
		{flowclient.Options{Backoff: second, MaxBackoff: ms}, "flowclient: Options.MaxBackoff must not be below Backoff, which is 1s (got 1ms)"},
		{flowclient.Options{MaxBackoff: ms}, "flowclient: Options.MaxBackoff must not be below Backoff, which is 100ms (got 1ms)"},
	} {
		if s, err := flowclient.New(open, c.o); s != nil || err == nil || err.Error() != c.says {
			t.Errorf("New() = %v, want %s", err, c.says)
		}
	}
	if _, err := flowclient.New[request, reply](nil, flowclient.Options{}); err == nil || err.Error() != "flowclient: open must not be nil" {
		t.Errorf("New(nil) = %v", err)
	}
	sizeless := func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[struct{}, reply], error) {
		return nil, nil
	}
	for _, o := range []flowclient.Options{{MaxBufferedBytes: 1}, {MaxMessageBytes: 1}} {
		if _, err := flowclient.New(sizeless, o); err == nil || !strings.Contains(err.Error(), "needs messages that have a size") {
			t.Errorf("New() = %v", err)
		}
	}
	if s, err := flowclient.New(open, flowclient.Options{Backoff: time.Minute, Session: strings.Repeat("~", 128)}); err != nil {
		t.Errorf("New() = %v", err)
	} else if err := s.Close(t.Context()); err != nil {
		t.Errorf("Close() = %v", err)
	}
}

// The largest options there are overflow nowhere.
func TestSenderLargestOptions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := serve(t, only(map[int]plan{1: {refuse: retryInfo(codes.Unavailable, second)}, 2: {endAfter: 1, endOK: true}}))
		s := newSender(t, client, flowclient.Options{MaxBuffered: math.MaxInt, MaxBufferedBytes: math.MaxInt64, MaxMessageBytes: math.MaxInt,
			MaxStreamAge: math.MaxInt64, AnswerTimeout: math.MaxInt64, HeaderTimeout: math.MaxInt64, MaxBackoff: math.MaxInt64, GiveUpAfter: math.MaxInt64})
		send(t, s, "a", "b", "c")
		mustClose(t, s)
		check(t, "ran", server.hasRun(), []string{"a", "b", "c"})
	})
}

func TestActionString(t *testing.T) {
	check(t, "actions", fmt.Sprint(flowclient.Stop, flowclient.Retry, flowclient.Skip, flowclient.Action(7)), "Stop Retry Skip Action(7)")
}

type sized struct{ n int }

func (s *sized) Size() int {
	if s.n == 77 {
		panic("mine")
	}
	return s.n
}

type text string

// sizeOf returns what a Sender of such messages counts for one of them.
func sizeOf[Req any](t *testing.T, m *Req) (int64, error) {
	t.Helper()
	open := func(ctx context.Context, _ ...grpc.CallOption) (grpc.ClientStreamingClient[Req, reply], error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	s, err := flowclient.New(open, flowclient.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = s.Send(t.Context(), m)
	size := s.Stats().BufferedBytes
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_ = s.Close(ctx)
	return size, err
}

func TestSenderSizesMessages(t *testing.T) {
	want := func(got int64, err error) func(int64) {
		t.Helper()
		return func(want int64) {
			t.Helper()
			if got != want || err != nil {
				t.Errorf("got %d, %v, want %d", got, err, want)
			}
		}
	}
	s, b := text("12345"), []byte("123")
	want(sizeOf(t, requestOf("12345")))(9)
	want(sizeOf(t, &s))(5)
	want(sizeOf(t, &b))(3)
	want(sizeOf(t, &sized{6}))(6)
	want(sizeOf(t, &sized{-6}))(0)
	want(sizeOf(t, &struct{}{}))(0)
	if _, err := sizeOf(t, &sized{77}); fmt.Sprint(err) != "flowclient: panic in the message's Size: mine" {
		t.Errorf("Send() = %v", err)
	}
}
