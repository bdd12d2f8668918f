package main

import (
	"os"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
)

func TestMain(m *testing.M) {
	natstest.Serve()
	if text := os.Getenv(envWorker); text != "" {
		if err := runWorker(text); err != nil {
			panic(err)
		}
		return
	}
	os.Exit(m.Run())
}

// A few thousand messages while everything goes wrong: the record is made by the command.
func TestNothingIsLostOrOutOfOrderWhateverGoesWrong(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long: not with -short")
	}
	ok, err := run(config{
		Messages: 3000, Rate: 200, Keys: 64, Workers: 3, Partitions: 8, Replicas: 1,
		Lease: time.Second, Handler: 5 * time.Millisecond, Every: 500 * time.Millisecond, Faults: "kill,stop,term,server",
	})
	if err != nil || !ok {
		t.Errorf("%v, %v", ok, err)
	}
}
