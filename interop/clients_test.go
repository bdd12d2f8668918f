package main

import (
	"reflect"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
)

const grpcurlSuccess = `
Response headers received:
content-type: application/grpc

Response contents:
{
  "stored": "300"
}

Response trailers received:
flow-committed: 300
Sent 300 requests and received 1 response
`

const grpcurlFailure = `
Response headers received:
(empty)

Response trailers received:
content-type: application/grpc
flow-committed: 0
flow-progress-bin: AgEB
Sent 2 requests and received 0 responses
`

func TestGrpcurlOutputIsRead(t *testing.T) {
	got, err := parseGrpcurl([]byte(grpcurlSuccess), nil)
	if err != nil || len(got) != 1 || got[0].Stored != 300 || got[0].Code != codes.OK || got[0].Trailers["flow-committed"] != "300" {
		t.Errorf("success: %+v, %v", got, err)
	}
	got, err = parseGrpcurl([]byte(grpcurlFailure), []byte(`{"code": 8, "message": "refused", "details": [
		{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "domain": "example.com/flow", "metadata": {"seq": "2"}, "reason": "BACKPRESSURE"}]}`))
	if err != nil || len(got) != 1 {
		t.Fatalf("failure: %v", err)
	}
	o := got[0]
	want := packed(t, &errdetails.ErrorInfo{Reason: "BACKPRESSURE", Domain: domain, Metadata: map[string]string{"seq": "2"}})
	if o.Code != codes.ResourceExhausted || o.Message != "refused" || o.Trailers["flow-progress-bin"] != "AgEB" ||
		!reflect.DeepEqual(o.Status, want) {
		t.Errorf("failure: %+v", o)
	}
	if got, err := parseGrpcurl(nil, []byte("Failed to dial")); err == nil {
		t.Errorf("no answer at all: %+v", got)
	}
	if got, err := parseGrpcurl([]byte(grpcurlFailure), []byte("panic: ")); err == nil {
		t.Errorf("a panic: %+v", got)
	}
}

func TestGhzReportIsRead(t *testing.T) {
	got, err := parseGhz([]byte(`{"details": [{"status": "OK", "error": ""},
		{"status": "ResourceExhausted", "error": "rpc error: code = ResourceExhausted desc = refused: why"}]}`), nil)
	want := []outcome{{blind: true}, {Code: codes.ResourceExhausted, Message: "refused: why", blind: true}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, report := range []string{"", "{}", `{"details": [{"status": "Fine"}]}`} {
		if got, err := parseGhz([]byte(report), nil); err == nil {
			t.Errorf("%q: %+v", report, got)
		}
	}
}

func TestOutcomesOfOurClientsAreRead(t *testing.T) {
	got, err := parseOutcomes([]byte(`{"code": 14, "message": "m", "status": "AQI=", "trailers": {"a": "b"}, "stored": 0}
{"code": 0, "message": "", "status": null, "trailers": {}, "stored": 7}
`))
	want := []outcome{
		{Code: codes.Unavailable, Message: "m", Status: []byte{1, 2}, Trailers: map[string]string{"a": "b"}},
		{Trailers: map[string]string{}, Stored: 7},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "Traceback", `{"code": 14`} {
		if got, err := parseOutcomes([]byte(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}
