// Command grpcgo is the grpc-go client of the matrix. The contract that the clients share is in ../README.md.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"example.com/flow"
	pb "example.com/flow/examples/ingest/ingestpb"
	"example.com/flow/flowclient"
)

func main() {
	target := flag.String("target", "", "host:port of the server")
	ca := flag.String("ca", "", "PEM file to trust; without one, no TLS")
	deadline := flag.Duration("deadline", 0, "of the call; 0 is none")
	resume := flag.Bool("resume", false, "send the rest to the next server after a shutdown")
	session := flag.String("session", "", "upload all by a Sender, under this name")
	flag.Parse()
	if err := run(*target, *ca, *deadline, *resume, *session); err != nil {
		fmt.Fprintln(os.Stderr, "grpcgo:", err)
		os.Exit(1)
	}
}

func run(target, ca string, deadline time.Duration, resume bool, session string) error {
	creds := insecure.NewCredentials()
	if ca != "" {
		var err error
		if creds, err = credentials.NewClientTLSFromFile(ca, ""); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	api := pb.NewIngestClient(conn)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // an interrupt cancels the call
	defer stop()
	if deadline > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, deadline)
		defer cancel()
	}
	input := make(chan *pb.Record)
	go read(os.Stdin, input)
	if session != "" {
		return survive(ctx, api, session, input)
	}
	var backlog []*pb.Record
	for {
		sent, trailer, err := call(ctx, api, backlog, input)
		if !resume || flow.ClassifyFailure(err) != flow.FailureShutdown {
			return nil
		}
		progress, ok := flow.ProgressFromTrailer(trailer)
		if !ok {
			return errors.New("the server that shut down did not say how far it got")
		}
		backlog = slices.Collect(flow.Rest(progress, slices.Values(sent)))
		time.Sleep(retryInfo(err))
		if err := await(ctx, api); err != nil {
			return err
		}
	}
}

// survive uploads the input by a Sender, which resumes by itself, and prints what is settled in the end.
func survive(ctx context.Context, api pb.IngestClient, session string, input <-chan *pb.Record) error {
	s, err := flowclient.New(api.Upload, flowclient.Options{Session: session, NoHeader: true})
	if err != nil {
		return err
	}
	if _, err := s.Resume(ctx); err != nil {
		return err
	}
	for r := range input {
		if err := s.Send(ctx, r); err != nil {
			return err
		}
	}
	err = s.Close(ctx)
	settled := strconv.FormatUint(s.Stats().Settled, 10)
	return tell(err, metadata.Pairs("flow-committed", settled), 0)
}

// read sends what the lines of r say, and closes the channel at their end.
func read(r io.Reader, to chan<- *pb.Record) {
	defer close(to)
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		rec := new(pb.Record)
		if err := protojson.Unmarshal(line, rec); err != nil {
			panic(err)
		}
		to <- rec
	}
}

// call is one Upload, of the backlog and then of what comes. It prints how it ended.
func call(ctx context.Context, api pb.IngestClient, backlog []*pb.Record, input <-chan *pb.Record) ([]*pb.Record, metadata.MD, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := api.Upload(ctx, grpc.WaitForReady(true))
	if err != nil {
		return nil, nil, tell(err, nil, 0)
	}
	receipt := new(pb.Receipt)
	answer := make(chan error, 1) // it may come before all is sent, and while there is nothing to send
	go func() { answer <- stream.RecvMsg(receipt) }()

	var sent []*pb.Record
	send := func() error {
		for {
			var r *pb.Record
			if len(backlog) > 0 {
				r, backlog = backlog[0], backlog[1:]
			} else {
				more := false
				select {
				case r, more = <-input:
				case err := <-answer:
					return err
				}
				if !more {
					_ = stream.CloseSend() // always nil
					return <-answer
				}
			}
			sent = append(sent, r)
			if err := stream.Send(r); err != nil {
				return <-answer
			}
		}
	}
	err = send()
	sent = append(sent, backlog...) // what is left of it comes after what was sent
	return sent, stream.Trailer(), tell(err, stream.Trailer(), receipt.GetStored())
}

// await returns when the server answers another call.
func await(ctx context.Context, api pb.IngestClient) error {
	stream, err := api.State(ctx, &pb.StateRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("awaiting the next server: %w", err)
	}
	return nil
}

func retryInfo(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// tell prints how a call ended, and returns err.
func tell(err error, trailer metadata.MD, stored uint64) error {
	st := status.Convert(err)
	trailers := map[string]string{}
	for k, v := range trailer {
		trailers[k] = strings.Join(v, ",")
		if strings.HasSuffix(k, "-bin") {
			trailers[k] = base64.StdEncoding.EncodeToString([]byte(trailers[k]))
		}
	}
	var details []byte
	if len(st.Details()) > 0 {
		details, _ = proto.Marshal(st.Proto()) // it was unmarshalled before
	}
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{
		"code": st.Code(), "message": st.Message(), "status": details, "trailers": trailers, "stored": stored,
	})
	return err
}
