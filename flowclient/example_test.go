package flowclient_test

import (
	"context"
	"fmt"

	"example.com/flow"
	"example.com/flow/flowclient"
	testpb "google.golang.org/grpc/interop/grpc_testing"
)

// An upload that a restart of this program survives too: the session has a name, and Resume says where to go on.
func ExampleSender() {
	client, stop := exampleClient()
	defer stop()
	ctx := context.Background()
	input := []string{"21.5", "21.7", "poison", "21.4"}

	s, err := flowclient.New(client.StreamingInputCall, flowclient.Options{
		Session: "readings-of-2026-11-27",
		OnFailure: func(f *flow.Failure) flowclient.Action {
			fmt.Println("skipped", f.Seq, valueOf(f.Value.(*testpb.StreamingInputCallRequest)))
			return flowclient.Skip
		},
	})
	if err != nil {
		panic(err)
	}
	next, err := s.Resume(ctx)
	if err != nil {
		panic(err)
	}
	for _, v := range input[next-1:] {
		if err := s.Send(ctx, requestOf(v)); err != nil {
			break // the Sender has ended, and Close says why
		}
	}
	if err := s.Close(ctx); err != nil {
		for n, m := range s.Unsettled() {
			fmt.Println("not known to be settled:", n, valueOf(m))
		}
	}
	st := s.Stats()
	fmt.Println(st.Taken, st.Settled, st.Skipped)
	// Output:
	// skipped 3 poison
	// 4 3 1
}
