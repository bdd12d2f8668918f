package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// example is the example's server, a process of its own.
type example struct {
	rig     *rig
	program string
	args    []string

	cmd    *exec.Cmd
	output bytes.Buffer
	exited chan error

	conn *grpc.ClientConn // past the proxy, to see what is stored
	api  pb.IngestClient
}

// newExample makes the server ready to start, again and again, on one database.
func newExample(r *rig, to route, program, db string) (*example, error) {
	e := &example{rig: r, program: program, args: []string{"-serve", r.example, "-db", db}}
	creds := insecure.NewCredentials()
	if to.tls {
		e.args = append(e.args, "-tls", r.pem)
		var err error
		if creds, err = credentials.NewClientTLSFromFile(r.trust, ""); err != nil {
			return nil, err
		}
	}
	var err error
	if e.conn, err = grpc.NewClient(r.example, grpc.WithTransportCredentials(creds)); err != nil {
		return nil, err
	}
	e.api = pb.NewIngestClient(e.conn)
	return e, nil
}

// start returns when the server listens. The end of ctx kills it.
func (e *example) start(ctx context.Context) error {
	e.output.Reset()
	e.cmd = exec.CommandContext(ctx, e.program, e.args...)
	e.cmd.Stdout, e.cmd.Stderr = &e.output, &e.output
	if err := e.cmd.Start(); err != nil {
		return err
	}
	e.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(e.cmd, e.exited)
	if err := awaitListener(ctx, e.rig.example); err != nil {
		return fmt.Errorf("the example server: %w", errors.Join(err, e.stop()))
	}
	return nil
}

// stop terminates the server as an operator would, and waits. The error is nil if it exited with 0: then it had nothing
// left running that it had to cut off.
func (e *example) stop() error {
	if e.cmd == nil {
		return nil
	}
	_ = e.cmd.Process.Signal(syscall.SIGTERM) // it may be gone
	err := <-e.exited
	e.cmd = nil
	if err != nil {
		return fmt.Errorf("the example server: %w: %s", err, &e.output)
	}
	return nil
}

// stored is how many records of the upload are stored.
func (e *example) stored(ctx context.Context, upload string) (n uint64, err error) {
	states, err := e.states(ctx, upload)
	for _, s := range states {
		n += s.GetRecords()
	}
	return n, err
}

func (e *example) states(ctx context.Context, upload string) (all []*pb.KeyState, err error) {
	stream, err := e.api.State(ctx, &pb.StateRequest{Upload: upload}, grpc.WaitForReady(true))
	for err == nil {
		var k *pb.KeyState
		if k, err = stream.Recv(); err == nil {
			all = append(all, k)
		}
	}
	if err == io.EOF {
		err = nil
	}
	return all, err
}

// check compares what is stored with a sequential replay of the records: one that is lost, out of its turn or stored
// twice changes its key's hash.
func (e *example) check(ctx context.Context, records []*pb.Record) error {
	states, err := e.states(ctx, records[0].GetUpload())
	if err != nil {
		return err
	}
	want := map[string]*pb.KeyState{}
	for _, r := range records {
		k := want[r.GetKey()]
		if k == nil {
			k = &pb.KeyState{Hash: make([]byte, sha256.Size)}
			want[r.GetKey()] = k
		}
		hash := sha256.Sum256(append(k.Hash, r.GetText()...))
		k.Records, k.Hash = k.Records+1, hash[:]
	}
	if len(states) != len(want) {
		return fmt.Errorf("%d keys are stored, want %d", len(states), len(want))
	}
	for _, s := range states {
		if w := want[s.GetKey()]; s.GetRecords() != w.GetRecords() || !bytes.Equal(s.GetHash(), w.GetHash()) {
			return fmt.Errorf("key %q: %d records are stored, want %d; the hashes are equal: %v",
				s.GetKey(), s.GetRecords(), w.GetRecords(), bytes.Equal(s.GetHash(), w.GetHash()))
		}
	}
	return nil
}

func (e *example) close() error { return errors.Join(e.stop(), e.conn.Close()) }
