package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "example.com/flow/examples/minimal/readingspb"
)

const (
	streams  = 4   // of the client, side by side
	devices  = 500 // each of them sends over one stream
	coldEach = 5000
	tooCold  = -400 // less than there can be
)

// input is what is sent, and what is to be in the tables in the end.
type input struct {
	readings [streams][]*pb.Reading
	replay   map[string][]float64 // what is stored of each device, in order
	cold     int
}

// newInput makes n readings, the same ones each time.
func newInput(n int) *input {
	in := &input{replay: map[string][]float64{}}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		d := r.IntN(devices)
		m := &pb.Reading{Device: fmt.Sprintf("device-%03d", d), Celsius: float64(i) / 1000}
		if (i+1)%coldEach == 0 {
			m.Celsius = tooCold
			in.cold++
		} else {
			in.replay[m.Device] = append(in.replay[m.Device], m.Celsius)
		}
		in.readings[d%streams] = append(in.readings[d%streams], m)
	}
	return in
}

// String says in a line what it is.
func (in *input) String() string {
	n := 0
	for _, part := range in.readings {
		n += len(part)
	}
	return fmt.Sprintf("%d readings of %d devices over %d streams; %d are too cold", n, len(in.replay), streams, in.cold)
}

// send uploads the input. It returns how long that took.
func send(ctx context.Context, addr string, in *input) (time.Duration, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	start := time.Now()
	all, ctx := errgroup.WithContext(ctx)
	for _, part := range in.readings {
		all.Go(func() error {
			stream, err := pb.NewReadingsClient(conn).Upload(ctx)
			if err != nil {
				return err
			}
			for _, r := range part {
				if stream.Send(r) != nil {
					break // CloseAndRecv says why
				}
			}
			_, err = stream.CloseAndRecv()
			return err
		})
	}
	err = all.Wait()
	return time.Since(start), err
}
