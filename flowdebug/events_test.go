package flowdebug_test

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow"
	"example.com/flow/flowdebug"
)

// counting is a Source that counts its Snapshots.
type counting struct{ snapshots int }

func (c *counting) Snapshot(int) flow.Snapshot {
	c.snapshots++
	return flow.Snapshot{}
}

func TestSnapshotIsSharedByReadersOfOneMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, c := flowdebug.New(), new(counting)
		page.Add("f", c)
		for range 10 {
			read(t, page, "?format=json")
		}
		time.Sleep(250 * time.Millisecond)
		read(t, page, "?format=json")
		if c.snapshots != 2 {
			t.Errorf("%d snapshots were taken, want 2", c.snapshots)
		}
	})
}

func TestEventsComeTwiceASecondUntilTheContextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, c := flowdebug.New(), new(counting)
		page.Add("f", c)
		ctx, cancel := context.WithCancel(context.Background())
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			page.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/?format=events", nil))
		}()
		time.Sleep(2200 * time.Millisecond)
		synctest.Wait()
		if c.snapshots != 5 {
			t.Errorf("%d snapshots in 2.2 s, want 5", c.snapshots)
		}
		cancel()
		<-done
		synctest.Wait()
		events := strings.Split(strings.TrimSuffix(w.Body.String(), "\n\n"), "\n\n")
		if len(events) != 5 || !w.Flushed || w.Header().Get("X-Accel-Buffering") != "no" {
			t.Fatalf("%d events:\n%s", len(events), w.Body)
		}
		for i, e := range events {
			if i == 0 {
				e = strings.TrimPrefix(e, "retry: 1000\n")
			}
			var d document
			data, ok := strings.CutPrefix(e, "data: ")
			if err := json.Unmarshal([]byte(data), &d); !ok || err != nil || len(d.Flows) != 1 {
				t.Errorf("event is %s", e)
			}
		}
	})
}

// In real time, over a real connection: TestMain checks that no goroutine is left.
func TestEventsEndWhenTheClientGoesAndWhenTheServerShutsDown(t *testing.T) {
	page := flowdebug.New()
	page.Add("f", fake{})
	handled := make(chan struct{}, 2)
	ctx, cancel := context.WithCancel(context.Background())
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r2, stop := context.WithCancel(r.Context())
		defer stop()
		defer context.AfterFunc(ctx, stop)()
		page.ServeHTTP(w, r.WithContext(r2))
		handled <- struct{}{}
	}))
	server.Config.RegisterOnShutdown(cancel)
	server.Start()
	defer server.Close()
	for _, end := range []func(io.Closer){
		func(body io.Closer) { _ = body.Close() },
		func(io.Closer) {
			limited, stop := context.WithTimeout(context.Background(), 10*time.Second)
			defer stop()
			if err := server.Config.Shutdown(limited); err != nil {
				t.Error(err)
			}
		},
	} {
		response, err := server.Client().Get(server.URL + "/?format=events")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(response.Body, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		end(response.Body)
		<-handled
		_ = response.Body.Close()
	}
}

// A server's timeouts are for requests that end, which a stream of events does not.
func TestEventsOutliveTheServersTimeouts(t *testing.T) {
	page := flowdebug.New()
	page.Add("f", fake{})
	server := httptest.NewUnstartedServer(page)
	server.Config.ReadTimeout, server.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	server.Start()
	defer server.Close()
	response, err := server.Client().Get(server.URL + "/?format=events")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	for lines, events := bufio.NewScanner(response.Body), 0; events < 3; { // a second
		if !lines.Scan() {
			t.Fatalf("the stream ended after %d events: %v", events, lines.Err())
		}
		if strings.HasPrefix(lines.Text(), "data: ") {
			events++
		}
	}
}

// pipeListener gives a server one end of each pipe.
type pipeListener chan net.Conn

func (l pipeListener) Accept() (net.Conn, error) {
	if c, ok := <-l; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}

func (l pipeListener) Close() error   { return nil }
func (l pipeListener) Addr() net.Addr { return new(net.UnixAddr) }

func TestEventsEndForAClientThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page := flowdebug.New()
		page.Add("f", fake{})
		handled := make(chan time.Duration, 1)
		server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			start := time.Now()
			page.ServeHTTP(w, r)
			handled <- time.Since(start)
		})}
		listener := make(pipeListener)
		served := make(chan error)
		go func() { served <- server.Serve(listener) }()
		mine, theirs := net.Pipe()
		listener <- theirs
		if _, err := io.WriteString(mine, "GET /?format=events HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		events := bufio.NewReader(mine)
		for seen := 0; seen < 3; { // then it falls asleep
			line, err := events.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(line, "data: ") {
				seen++
			}
		}
		if took := <-handled; took > 12*time.Second {
			t.Errorf("it was served for %v", took)
		}
		_ = mine.Close()
		close(listener)
		<-served
		_ = server.Close()
	})
}
