package otelnatsflow_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"example.com/flow/natsflow"
)

// states are those of all partitions of a worker that does nothing.
type states []natsflow.PartitionState

func (s states) Partitions(context.Context) ([]natsflow.PartitionState, error) { return s, nil }

func TestStatesOfPartitionsAreShownUntilUnregister(t *testing.T) {
	tel, reader := telemetry()
	watching, err := tel.Watch(states{{
		Partition: 1, Holder: "w", Epoch: 9, Frontier: 10, Top: 17, Unsettled: 3, Last: 30, Lag: 20, Age: 1500 * time.Millisecond,
		Deaths: 2, Suspect: 11, Stopped: "message 11: store failed",
	}})
	if err != nil {
		t.Fatal(err)
	}
	points, _ := collect(t, reader)
	want := []string{
		"natsflow.partition.age{T,P} 1.5", "natsflow.partition.deaths{T,P} 2", "natsflow.partition.lag{T,P} 20",
		"natsflow.partition.stopped{T,P} 1", "natsflow.partition.unsettled{T,P} 3",
	}
	if got := sorted(points); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if err := watching.Unregister(); err != nil {
		t.Fatal(err)
	}
	if points, _ := collect(t, reader); len(points) > 0 {
		t.Errorf("%v is shown after Unregister", points)
	}
}

func TestAPartitionOfWhichAllIsSettledIsShownWithZeros(t *testing.T) {
	tel, reader := telemetry()
	watching, err := tel.Watch(states{{Partition: 1, Frontier: 10, Top: 10, Last: 10}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watching.Unregister() }()
	points, _ := collect(t, reader)
	want := []string{
		"natsflow.partition.age{T,P} 0", "natsflow.partition.deaths{T,P} 0", "natsflow.partition.lag{T,P} 0",
		"natsflow.partition.stopped{T,P} 0", "natsflow.partition.unsettled{T,P} 0",
	}
	if got := sorted(points); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// unreachable are servers that do not answer.
type unreachable struct{}

func (unreachable) Partitions(ctx context.Context) ([]natsflow.PartitionState, error) {
	<-ctx.Done()
	return nil, errors.New("nobody has answered, which a test may print")
}

func TestServersThatDoNotAnswerDelayACollectionByFiveSecondsAndHideNoOtherMetric(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tel, reader := telemetry()
		watching, err := tel.Watch(unreachable{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = watching.Unregister() }()
		tel.Observer()(natsflow.PartitionEvent{Kind: natsflow.EventDied, Partition: 1})
		began := time.Now()
		points, _ := collect(t, reader)
		if got := sorted(points); !slices.Equal(got, []string{"natsflow.deaths{T,P} 1"}) {
			t.Errorf("%v", got)
		}
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}
