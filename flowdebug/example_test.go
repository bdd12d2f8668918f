package flowdebug_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"example.com/flow"
	"example.com/flow/flowdebug"
)

// A page for operators, and what a script reads of it.
func Example() {
	page := flowdebug.New()
	f, err := flow.New(func(_ context.Context, m flow.Message[string]) error {
		if m.Value == "" {
			return fmt.Errorf("empty reading")
		}
		return nil
	}, nil, flow.Options{
		Observer:     page.Observer("readings"),
		Backpressure: flow.BackpressureOptions{Capacity: 64},
		OnFailure:    func(context.Context, *flow.Failure) flow.FailureAction { return flow.SkipMessage },
	})
	if err != nil {
		log.Fatal(err)
	}
	page.Add("readings", f)
	mux := http.NewServeMux()
	mux.Handle("/debug/flow/", page)
	server := httptest.NewServer(mux) // a service listens on an address that only operators reach

	readings := make(chan string, 2)
	readings <- "21.5"
	readings <- ""
	close(readings)
	if _, err := f.Run(context.Background(), flow.FromChan(context.Background(), readings)); err != nil {
		log.Fatal(err)
	}

	answer, err := server.Client().Get(server.URL + "/debug/flow/?format=json")
	if err != nil {
		log.Fatal(err)
	}
	var document struct {
		Flows []struct {
			Flow               string
			InFlight, Capacity int
			Total              struct{ Succeeded, Failed int }
			Failures           []struct {
				Seq         int
				Kind, Error string
			}
		}
	}
	if err := json.NewDecoder(answer.Body).Decode(&document); err != nil {
		log.Fatal(err)
	}
	_ = answer.Body.Close()
	server.Close()
	for _, f := range document.Flows {
		fmt.Printf("%s: %d of %d in flight, %d succeeded, %d failed\n", f.Flow, f.InFlight, f.Capacity, f.Total.Succeeded, f.Total.Failed)
		for _, e := range f.Failures {
			fmt.Printf("message %d: %s: %s\n", e.Seq, e.Kind, e.Error)
		}
	}
	// Output:
	// readings: 0 of 64 in flight, 1 succeeded, 1 failed
	// message 2: FailureHandlerError: empty reading
}
