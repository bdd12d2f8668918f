// Command connectgo is the connect-go client of the matrix, speaking gRPC. The contract that the clients share is in
// ../README.md.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	spb "google.golang.org/genproto/googleapis/rpc/status"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	pb "example.com/flow/examples/ingest/ingestpb"
)

const service = "/ingest.v1.Ingest/"

func main() {
	target := flag.String("target", "", "host:port of the server")
	ca := flag.String("ca", "", "PEM file to trust; without one, no TLS")
	deadline := flag.Duration("deadline", 0, "of the call; 0 is none")
	resume := flag.Bool("resume", false, "send the rest to the next server after a shutdown")
	session := flag.String("session", "", "upload all under this name, over as many calls as it takes")
	flag.Parse()
	if err := run(*target, *ca, *deadline, *resume, *session); err != nil {
		fmt.Fprintln(os.Stderr, "connectgo:", err)
		os.Exit(1)
	}
}

// newHTTP is an HTTP client that speaks HTTP/2, without TLS too.
func newHTTP(target, ca string) (*http.Client, string, error) {
	t := &http.Transport{Protocols: new(http.Protocols)}
	if ca == "" {
		t.Protocols.SetUnencryptedHTTP2(true)
		return &http.Client{Transport: t}, "http://" + target, nil
	}
	text, err := os.ReadFile(ca)
	if err != nil {
		return nil, "", err
	}
	t.Protocols.SetHTTP2(true)
	t.TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
	t.TLSClientConfig.RootCAs.AppendCertsFromPEM(text)
	return &http.Client{Transport: t}, "https://" + target, nil
}

func run(target, ca string, deadline time.Duration, resume bool, session string) error {
	client, url, err := newHTTP(target, ca)
	if err != nil {
		return err
	}
	defer client.CloseIdleConnections()
	upload := connect.NewClient[pb.Record, pb.Receipt](client, url+service+"Upload", connect.WithGRPC())
	state := connect.NewClient[pb.StateRequest, pb.KeyState](client, url+service+"State", connect.WithGRPC())

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
		return survive(ctx, upload, session, input)
	}
	var backlog []*pb.Record
	for {
		sent, err := call(ctx, upload, backlog, input)
		if !resume || reason(err) != "SHUTDOWN" {
			return nil
		}
		committed, parseErr := strconv.Atoi(err.Meta().Get("flow-committed"))
		if parseErr != nil {
			return fmt.Errorf("the server that shut down did not say how far it got: %w", parseErr)
		}
		backlog = sent[committed:]
		time.Sleep(retryInfo(err))
		if err := await(ctx, state); err != nil {
			return err
		}
	}
}

// survive uploads the input under a session, by the wire table alone: a broken connection says nothing, so the same is
// sent again.
func survive(ctx context.Context, upload *connect.Client[pb.Record, pb.Receipt], session string, input <-chan *pb.Record) error {
	const part = 500
	var records []*pb.Record
	for r := range input {
		records = append(records, r)
	}
	again := []connect.Code{
		connect.CodeUnavailable, connect.CodeDeadlineExceeded, connect.CodeCanceled, connect.CodeAborted, connect.CodeInternal,
		connect.CodeUnknown,
	}
	epoch := ""
	for committed := 0; committed < len(records); {
		stream := upload.CallClientStream(ctx)
		stream.RequestHeader().Set("flow-session", session)
		stream.RequestHeader().Set("flow-start", strconv.Itoa(committed+1))
		if epoch != "" {
			stream.RequestHeader().Set("flow-epoch", epoch)
		}
		for _, r := range records[committed:min(committed+part, len(records))] {
			if stream.Send(r) != nil {
				break // CloseAndReceive says why
			}
		}
		resp, err := stream.CloseAndReceive()
		a := answer{err: err}
		if err == nil {
			a.stored, a.trailers = resp.Msg.GetStored(), resp.Trailer()
		}
		failed := tell(a)
		if failed != nil {
			if a.trailers = failed.Meta(); a.trailers.Get("flow-failed") != "" || !slices.Contains(again, failed.Code()) {
				return failed
			}
			time.Sleep(200 * time.Millisecond)
		}
		if e := a.trailers.Values("flow-epoch"); len(e) > 0 {
			epoch = e[len(e)-1]
		}
		if c := a.trailers.Values("flow-committed"); len(c) > 0 { // of the header, and then of the trailers
			n, err := strconv.Atoi(c[len(c)-1])
			if err != nil {
				return err
			}
			committed = n
		}
	}
	return nil
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

type answer struct {
	stored   uint64
	trailers http.Header
	err      error
}

// call is one Upload, of the backlog and then of what comes. It prints how it ended. CloseAndReceive sends the end of
// the stream first, so an answer that comes early shows only at the next Send.
func call(ctx context.Context, upload *connect.Client[pb.Record, pb.Receipt], backlog []*pb.Record, input <-chan *pb.Record) ([]*pb.Record, *connect.Error) {
	stream := upload.CallClientStream(ctx)
	var sent []*pb.Record
	for {
		var r *pb.Record
		if len(backlog) > 0 {
			r, backlog = backlog[0], backlog[1:]
		} else {
			more := false
			select {
			case r, more = <-input:
			case <-ctx.Done():
			}
			if !more {
				break
			}
		}
		sent = append(sent, r)
		if err := stream.Send(r); err != nil {
			break
		}
	}
	sent = append(sent, backlog...) // what is left of it comes after what was sent
	resp, err := stream.CloseAndReceive()
	a := answer{err: err}
	if err == nil {
		a.stored, a.trailers = resp.Msg.GetStored(), resp.Trailer()
	}
	return sent, tell(a)
}

// await returns when the server answers another call.
func await(ctx context.Context, state *connect.Client[pb.StateRequest, pb.KeyState]) error {
	for {
		stream, err := state.CallServerStream(ctx, connect.NewRequest(&pb.StateRequest{}))
		if err == nil {
			stream.Receive()
			err = errors.Join(stream.Err(), stream.Close())
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func reason(err *connect.Error) string {
	for _, d := range details(err) {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

func retryInfo(err *connect.Error) time.Duration {
	for _, d := range details(err) {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func details(err *connect.Error) (all []proto.Message) {
	if err == nil {
		return nil
	}
	for _, d := range err.Details() {
		if m, e := d.Value(); e == nil {
			all = append(all, m)
		}
	}
	return all
}

// tell prints how a call ended, and returns its error.
func tell(a answer) *connect.Error {
	out := map[string]any{"code": 0, "message": "", "stored": a.stored}
	err, failed := errors.AsType[*connect.Error](a.err)
	if failed {
		a.trailers = err.Meta() // with the headers
		out["code"], out["message"] = uint32(err.Code()), err.Message()
		st := &spb.Status{Code: int32(err.Code()), Message: err.Message()}
		for _, d := range details(err) {
			detail, e := anypb.New(d)
			if e != nil {
				panic(e)
			}
			st.Details = append(st.Details, detail)
		}
		if len(st.GetDetails()) > 0 {
			out["status"], _ = proto.Marshal(st) // it was unmarshalled before
		}
	} else if a.err != nil {
		panic(a.err) // connect promises that there is no other
	}
	trailers := map[string]string{}
	for k, v := range a.trailers {
		k, value := strings.ToLower(k), strings.Join(v, ",")
		if strings.HasSuffix(k, "-bin") {
			b, e := connect.DecodeBinaryHeader(value)
			if e != nil {
				panic(e)
			}
			value = base64.StdEncoding.EncodeToString(b)
		}
		trailers[k] = value
	}
	out["trailers"] = trailers
	_ = json.NewEncoder(os.Stdout).Encode(out)
	return err
}
