package otelnatsflow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"example.com/flow/natsflow"
	"example.com/flow/natsflow/otelnatsflow"
)

// collect returns the points of all metrics, as "name{attributes} value", the count where it is a histogram, and the units.
func collect(t *testing.T, reader sdk.Reader) (points map[string]float64, units map[string]string) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	points, units = map[string]float64{}, map[string]string{}
	for _, scope := range all.ScopeMetrics {
		for _, m := range scope.Metrics {
			units[m.Name] = m.Unit
			point := func(set attribute.Set, v float64) {
				var parts []string
				for _, kv := range set.ToSlice() {
					parts = append(parts, fmt.Sprintf("%s=%s", kv.Key, kv.Value.String()))
				}
				slices.Sort(parts)
				points[m.Name+"{"+strings.Join(parts, ",")+"}"] = v
			}
			switch data := m.Data.(type) {
			case metricdata.Sum[int64]:
				for _, p := range data.DataPoints {
					point(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[int64]:
				for _, p := range data.DataPoints {
					point(p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range data.DataPoints {
					point(p.Attributes, p.Value)
				}
			case metricdata.Histogram[int64]:
				for _, p := range data.DataPoints {
					point(p.Attributes, float64(p.Count))
				}
			case metricdata.Histogram[float64]:
				for _, p := range data.DataPoints {
					point(p.Attributes, float64(p.Count))
				}
			default:
				t.Errorf("%s has data of type %T", m.Name, data)
			}
		}
	}
	return points, units
}

var topic = natsflow.Topic{Name: "readings", Partitions: 2, Replicas: 1}

// telemetry is one of topic, and what reads it.
func telemetry() (*otelnatsflow.Telemetry, sdk.Reader) {
	reader := sdk.NewManualReader()
	return otelnatsflow.New(topic, otelnatsflow.WithMeterProvider(sdk.NewMeterProvider(sdk.WithReader(reader)))), reader
}

var errStore = errors.New("store failed")

// happened are events of partition 1, and what is counted of each.
var happened = []struct {
	event natsflow.PartitionEvent
	want  []string // points, without what all have
}{
	{natsflow.PartitionEvent{Kind: natsflow.EventClaimed, Reason: natsflow.ReasonFree},
		[]string{"natsflow.partitions.held{T} 1", "natsflow.lease.claims{T,P,natsflow.claim.reason=free} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventClaimed, Reason: natsflow.ReasonExpired},
		[]string{"natsflow.partitions.held{T} 1", "natsflow.lease.claims{T,P,natsflow.claim.reason=expired} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventClaimed, Reason: natsflow.ReasonResumed},
		[]string{"natsflow.partitions.held{T} 1", "natsflow.lease.claims{T,P,natsflow.claim.reason=resumed} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventClaimed, Reason: "of a later version"},
		[]string{"natsflow.partitions.held{T} 1", "natsflow.lease.claims{T,P,natsflow.claim.reason=_OTHER} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventReleased},
		[]string{"natsflow.partitions.held{T} -1", "natsflow.lease.ends{T,P,natsflow.lease.end=released} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventLost, Err: natsflow.ErrLeaseLost},
		[]string{"natsflow.partitions.held{T} -1", "natsflow.lease.ends{T,P,natsflow.lease.end=lost} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventStopped, Err: errStore}, []string{"natsflow.partition.stops{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventCommitted, Took: time.Millisecond}, []string{"natsflow.commit.duration{T} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventCommitted, Err: context.DeadlineExceeded},
		[]string{"natsflow.commit.failures{T,error.type=timeout} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventDied, Deaths: 3}, []string{"natsflow.deaths{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventReplayed}, []string{"natsflow.replays{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventRefused, Err: natsflow.ErrLeaseLost}, []string{"natsflow.refusals{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventSuspect}, []string{"natsflow.suspects{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventPoison}, []string{"natsflow.poison{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventDeadLetter}, []string{"natsflow.dead_letters{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventDeadLetter, Err: errStore},
		[]string{"natsflow.dead_letter.failures{T,error.type=_OTHER} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventMissing, Seq: 7, Last: 9}, []string{"natsflow.losses{T,P} 1"}},
	{natsflow.PartitionEvent{Kind: natsflow.EventReplayed, Dropped: 7},
		[]string{"natsflow.replays{T,P} 1", "natsflow.events.dropped{T} 7"}},
}

// sorted is what is in points, as happened and the tests of Watch write it.
func sorted(points map[string]float64) (lines []string) {
	for point, v := range points {
		point = strings.Replace(point, "messaging.destination.name=readings", "T", 1)
		point = strings.Replace(point, ",messaging.destination.partition.id=1", ",P", 1)
		name, attrs, _ := strings.Cut(strings.TrimSuffix(point, "}"), "{")
		parts := strings.Split(attrs, ",")
		slices.Sort(parts) // T and P come first
		if len(parts) > 1 && parts[0] == "P" && parts[1] == "T" {
			parts[0], parts[1] = "T", "P"
		}
		lines = append(lines, fmt.Sprintf("%s{%s} %v", name, strings.Join(parts, ","), v))
	}
	slices.Sort(lines)
	return lines
}

func TestWhatHappensToAPartitionIsCounted(t *testing.T) {
	for _, h := range happened {
		tel, reader := telemetry()
		h.event.Partition = 1
		tel.Observer()(h.event)
		points, _ := collect(t, reader)
		want := slices.Sorted(slices.Values(h.want))
		if got := sorted(points); !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", h.event.Kind, got, want)
		}
	}
}

func TestEveryKindOfEventIsCounted(t *testing.T) {
	for kind := natsflow.EventKind(0); !strings.HasPrefix(kind.String(), "EventKind("); kind++ {
		tel, reader := telemetry()
		tel.Observer()(natsflow.PartitionEvent{Kind: kind})
		if points, _ := collect(t, reader); len(points) == 0 {
			t.Errorf("%v is not", kind)
		}
	}
}

func TestEventsOfLaterVersionsAreIgnored(t *testing.T) {
	tel, reader := telemetry()
	tel.Observer()(natsflow.PartitionEvent{Kind: 4711})
	if points, _ := collect(t, reader); len(points) > 0 {
		t.Errorf("%v", points)
	}
}

func TestKeysAndSequenceNumbersAreNoAttributes(t *testing.T) {
	tel, reader := telemetry()
	for _, h := range happened {
		h.event.Key, h.event.Seq, h.event.Last, h.event.Epoch = "device-4711", 4711, 4711, 4711
		if h.event.Err != nil {
			h.event.Err = errors.New("device-4711")
		}
		tel.Observer()(h.event)
	}
	points, _ := collect(t, reader)
	for point := range points {
		if strings.Contains(point, "4711") {
			t.Errorf("%s", point)
		}
	}
}

func TestCommitsAreMeasuredInSeconds(t *testing.T) {
	tel, reader := telemetry()
	tel.Observer()(natsflow.PartitionEvent{Kind: natsflow.EventCommitted, Took: 2 * time.Second})
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	p := all.ScopeMetrics[0].Metrics[0].Data.(metricdata.Histogram[float64]).DataPoints[0]
	if p.Sum != 2 || p.BucketCounts[len(p.BucketCounts)-1] != 0 {
		t.Errorf("%+v", p)
	}
}

// errorTypeOf is what is counted of a commit that failed with err.
func errorTypeOf(t *testing.T, err error) string {
	t.Helper()
	tel, reader := telemetry()
	tel.Observer()(natsflow.PartitionEvent{Kind: natsflow.EventCommitted, Err: err})
	points, _ := collect(t, reader)
	for point := range points {
		_, rest, _ := strings.Cut(point, "error.type=")
		word, _, _ := strings.Cut(rest, ",")
		return word
	}
	return ""
}

func TestErrorTypesAreFewWords(t *testing.T) {
	for want, errs := range map[string][]error{
		"timeout":       {context.DeadlineExceeded, nats.ErrTimeout, fmt.Errorf("put: %w", context.DeadlineExceeded)},
		"canceled":      {context.Canceled},
		"no_responders": {nats.ErrNoResponders, jetstream.ErrNoStreamResponse},
		"disconnected":  {nats.ErrConnectionClosed, nats.ErrDisconnected, nats.ErrReconnectBufExceeded},
		"conflict":      {jetstream.ErrKeyRevisionMismatch},
		"_OTHER":        {errors.New("disk full on node 17"), &jetstream.APIError{Code: 500, ErrorCode: 10077}},
	} {
		for _, err := range errs {
			if got := errorTypeOf(t, err); got != want {
				t.Errorf("%v is %q, want %q", err, got, want)
			}
		}
	}
}

// metricRow is a row of a table of metrics: name, instrument and unit, attributes, meaning.
var metricRow = regexp.MustCompile("(?m)^\\| `(natsflow\\.[a-z_.]+)` \\| [a-z -]+(?:, `?([^`|]+?)`?)? \\|")

func TestTheREADMEHasEveryInstrumentAndItsUnit(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	for _, row := range metricRow.FindAllStringSubmatch(string(text), -1) {
		want[row[1]] = row[2]
	}
	tel, reader := telemetry()
	for _, h := range happened {
		tel.Observer()(h.event)
	}
	watching, err := tel.Watch(states{{}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = watching.Unregister() }()
	_, units := collect(t, reader)
	if fmt.Sprint(units) != fmt.Sprint(want) {
		t.Errorf("there are %v, and the README has %v", units, want)
	}
}
