package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"

	pb "example.com/flow/examples/fleet/fleetpb"
)

// ledger is the database that workers write to. It is in the conductor, which is not killed. What Apply does would be, in
// SQL:
//
//	INSERT INTO devices (device, seq, …) VALUES ($1, $2, …)
//	ON CONFLICT (device) DO UPDATE SET seq = excluded.seq, … WHERE devices.seq < excluded.seq  -- no row: it was done
type ledger struct {
	pb.UnimplementedLedgerServer

	mu      sync.Mutex
	devices map[string]entry
	counts  counts
}

// entry is what is there of a device.
type entry struct {
	seq    uint64 // of the effect that was last
	number uint64 // of its reading
	at     time.Time
}

// counts are those of a ledger.
type counts struct {
	applied int // readings
	refused int // by their sequence number: done before
	twice   int // readings that were done again all the same
	wrong   int // readings that came before one that was sent earlier
	longest time.Duration
}

// Apply implements the service.
func (l *ledger) Apply(_ context.Context, e *pb.Effect) (*pb.Applied, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	device, number, now := e.GetReading().GetDevice(), e.GetReading().GetNumber(), time.Now()
	have := l.devices[device]
	if e.GetSeq() <= have.seq {
		l.counts.refused++
		return &pb.Applied{First: false}, nil
	}
	switch {
	case number <= have.number:
		l.counts.twice++
	case number > have.number+1:
		l.counts.wrong++
	}
	if have.number > 0 {
		l.counts.longest = max(l.counts.longest, now.Sub(have.at))
	}
	l.counts.applied++
	l.devices[device] = entry{seq: e.GetSeq(), number: number, at: now}
	return &pb.Applied{First: true}, nil
}

func (l *ledger) look() counts {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// missing is how many of each sender's readings are not there, or were not the last of their device.
func (l *ledger) missing(messages int) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for s := range senders {
		last := map[string]uint64{}
		for i := 1; i <= messages; i++ {
			r := reading(s, i)
			last[r.GetDevice()] = r.GetNumber()
		}
		for device, number := range last {
			if have := l.devices[device].number; have < number {
				n += int(number - have)
			}
		}
	}
	return n
}

// serve serves the ledger until ctx ends, and returns its address.
func (l *ledger) serve(ctx context.Context) (address string, err error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("ledger: %w", err)
	}
	srv := grpc.NewServer()
	pb.RegisterLedgerServer(srv, l)
	go func() { _ = srv.Serve(listener) }() // it ends with Stop
	context.AfterFunc(ctx, srv.Stop)
	return listener.Addr().String(), nil
}
