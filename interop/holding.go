package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// holding is a proxy that holds the response header back until the first byte of the body, or the trailers.
type holding struct {
	lis       net.Listener
	server    *http.Server
	transport *http.Transport
	served    sync.WaitGroup
}

func newHolding(to string) (*holding, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	h := &holding{lis: lis, transport: &http.Transport{Protocols: protocols}}
	h.server = &http.Server{
		Protocols: protocols,
		ErrorLog:  log.New(io.Discard, "", 0), // of connections that were cut
	}
	proxy := &httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: "http", Host: to}) },
		Transport: h.transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	h.server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxy.ServeHTTP(&holdingWriter{ResponseWriter: w}, r)
	})
	h.served.Go(func() { _ = h.server.Serve(lis) })
	return h, nil
}

func (h *holding) address() string { return h.lis.Addr().String() }

func (h *holding) close() error {
	err := h.server.Close()
	h.transport.CloseIdleConnections()
	h.served.Wait()
	return err
}

// holdingWriter does not flush before there is anything but the header. The proxy calls it under a lock of its own.
type holdingWriter struct {
	http.ResponseWriter
	begun bool
}

// Write implements http.ResponseWriter.
func (w *holdingWriter) Write(b []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(b)
}

// FlushError is what a http.ResponseController calls.
func (w *holdingWriter) FlushError() error {
	if !w.begun {
		return nil
	}
	return http.NewResponseController(w.ResponseWriter).Flush()
}
