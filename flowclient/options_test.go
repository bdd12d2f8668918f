package flowclient_test

import (
	"context"
	"fmt"
	"testing"

	"example.com/flow/flowclient"
	"google.golang.org/grpc"
)

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
