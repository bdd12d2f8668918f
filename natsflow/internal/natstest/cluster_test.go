package natstest_test

import (
	"context"
	"os"
	"testing"
	"time"

	"example.com/flow/natsflow/internal/natstest"
	"github.com/nats-io/nats.go/jetstream"
)

func TestMain(m *testing.M) {
	natstest.Serve()
	os.Exit(m.Run())
}

func TestEmbeddedServerHasJetStream(t *testing.T) {
	js := natstest.Connect(t, natstest.Embedded(t))
	if _, err := js.AccountInfo(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestClusterKeepsWhatAKilledLeaderHad(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three servers")
	}
	c := natstest.Start(t, 3)
	js := natstest.Connect(t, c.URLs())
	config := jetstream.StreamConfig{Name: "s", Subjects: []string{"s"}, Replicas: 3}
	retry(t, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, config)
		return err
	})
	retry(t, func(ctx context.Context) error {
		_, err := js.Publish(ctx, "s", []byte("kept"))
		return err
	})
	first, err := c.Leader(js, "s")
	if err != nil {
		t.Fatal(err)
	}
	c.Kill(first)
	retry(t, func(ctx context.Context) error {
		s, err := js.Stream(ctx, "s")
		if err != nil {
			return err
		}
		m, err := s.GetMsg(ctx, 1)
		if err == nil && string(m.Data) != "kept" {
			t.Errorf("got %q", m.Data)
		}
		return err
	})
	if next, err := c.Leader(js, "s"); err != nil || next == first {
		t.Errorf("leader %d after %d was killed: %v", next, first, err)
	}
	if err := c.Run(first); err != nil {
		t.Fatal(err)
	}
}

func retry(t *testing.T, do func(context.Context) error) {
	t.Helper()
	var err error
	for range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err = do(ctx)
		cancel()
		if err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
}
