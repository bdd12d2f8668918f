package main

import (
	"context"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	pb "example.com/flow/examples/ingest/ingestpb"
)

// What the README shows of the clients is what they do.
func TestREADMEQuotesTheClients(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"interop/clients/python/resume.py", "interop/clients/grpcjs/resume.js"} {
		source, err := os.ReadFile("../" + file)
		if err != nil {
			t.Fatal(err)
		}
		_, quote, found := strings.Cut(string(readme), "<!-- from "+file+" -->\n```")
		_, quote, _ = strings.Cut(quote, "\n") // the language
		quote, _, closed := strings.Cut(quote, "```\n")
		if !found || !closed || quote == "" || !strings.Contains(string(source), quote) {
			t.Errorf("the README does not quote %s", file)
		}
	}
}

// echo is a server that sends back what it gets.
func echo(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lis.Close() })
	go func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(conn, conn); _ = conn.Close() }()
		}
	}()
	return lis.Addr().String()
}

func dialed(t *testing.T, addr string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(quiet)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestCutterBreaksAtTheLimitAndThenNoMore(t *testing.T) {
	c, err := newCutter(echo(t), 5)
	if err != nil {
		t.Fatal(err)
	}
	first := dialed(t, c.address())
	buf := make([]byte, 8)
	if _, err := first.Write([]byte("1234")); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(first, buf[:4]); err != nil || string(buf[:n]) != "1234" {
		t.Errorf("below the limit: %q, %v", buf[:n], err)
	}
	_, _ = first.Write([]byte("5"))
	if n, err := first.Read(buf); err == nil {
		t.Errorf("at the limit: %q", buf[:n])
	}
	second := dialed(t, c.address())
	if _, err := second.Write([]byte("12345678")); err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(second, buf); err != nil {
		t.Errorf("the next connection: %q, %v", buf[:n], err)
	}
	c.deafen()
	if _, err := second.Write([]byte("lost")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // for the echo to come back
	c.cutAll()
	if n, err := second.Read(buf); err == nil {
		t.Errorf("what was to be lost came: %q", buf[:n])
	}
	if c.cuts() != 2 {
		t.Errorf("%d cuts, want 2", c.cuts())
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

// headerService sends its header at once, and its answer when it is told to.
type headerService struct {
	pb.UnimplementedIngestServer
	answer chan struct{}
}

func (s *headerService) Upload(stream grpc.ClientStreamingServer[pb.Record, pb.Receipt]) error {
	if err := stream.SendHeader(metadata.Pairs("flow-epoch", "1")); err != nil {
		return err
	}
	<-s.answer
	stream.SetTrailer(metadata.Pairs("flow-committed", "7"))
	return stream.SendAndClose(&pb.Receipt{Stored: 7})
}

func TestHoldingProxyHoldsTheHeaderBackAndNothingElse(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	svc := &headerService{answer: make(chan struct{})}
	srv := grpc.NewServer()
	pb.RegisterIngestServer(srv, svc)
	go func() { _ = srv.Serve(lis) }()
	defer srv.Stop()
	h, err := newHolding(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.close() }()
	conn, err := grpc.NewClient(h.address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(t.Context(), quiet)
	defer cancel()
	stream, err := pb.NewIngestClient(conn).Upload(ctx)
	if err != nil {
		t.Fatal(err)
	}
	header := make(chan metadata.MD, 1)
	go func() {
		md, _ := stream.Header()
		header <- md
	}()
	select {
	case md := <-header:
		t.Errorf("the header came: %v", md)
		header <- md
	case <-time.After(100 * time.Millisecond):
	}
	close(svc.answer)
	receipt, err := stream.CloseAndRecv()
	if err != nil || receipt.GetStored() != 7 || strings.Join(stream.Trailer().Get("flow-committed"), ",") != "7" {
		t.Errorf("the answer is %v, %v, the trailers %v", receipt, err, stream.Trailer())
	}
	if md := <-header; strings.Join(md.Get("flow-epoch"), ",") != "1" {
		t.Errorf("the header is %v", md)
	}
}
