package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	pb "example.com/flow/examples/fleet/fleetpb"
	"example.com/flow/flowclient"
)

const (
	senders = 4
	devices = 8 // of each sender
)

// reading is message i, from 1, of a sender: its devices take turns.
func reading(sender, i int) *pb.Reading {
	return &pb.Reading{Device: fmt.Sprintf("s%d-d%d", sender, i%devices), Number: uint64((i-1)/devices + 1)}
}

// open opens streams at the gateways in turn: whatever has become of one, the next is another's.
func open(addresses []string) (func(context.Context, ...grpc.CallOption) (grpc.ClientStreamingClient[pb.Reading, pb.Ack], error), error) {
	quick := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, MaxDelay: time.Second},
		MinConnectTimeout: time.Second,
	}
	var gateways []pb.ReadingsClient
	for _, address := range addresses {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(quick))
		if err != nil {
			return nil, err
		}
		gateways = append(gateways, pb.NewReadingsClient(conn)) // it lives as long as the process
	}
	next := 0
	return func(ctx context.Context, opts ...grpc.CallOption) (grpc.ClientStreamingClient[pb.Reading, pb.Ack], error) {
		next++
		return gateways[next%len(gateways)].Upload(ctx, opts...)
	}, nil
}

// runSender is a client: its number, how many messages it sends, how long it pauses between two, and the gateways'
// addresses, joined by commas. Its session is named after its number, so that it goes on after it was killed.
func runSender(ctx context.Context, args []string) error {
	number, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	messages, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	pause, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	stream, err := open(strings.Split(args[3], ","))
	if err != nil {
		return err
	}
	s, err := flowclient.New(stream, flowclient.Options{
		Session: "sender-" + args[0], MaxStreamAge: time.Second, AnswerTimeout: 5 * time.Second, HeaderTimeout: 2 * time.Second,
		MaxBackoff: time.Second,
	})
	if err != nil {
		return err
	}
	next, err := s.Resume(ctx)
	if err != nil {
		return err
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for i := int(next); i <= messages; i++ {
		if err := s.Send(ctx, reading(number, i)); err != nil {
			return err
		}
		<-tick.C
	}
	return s.Close(ctx)
}
