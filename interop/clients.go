package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	spb "google.golang.org/genproto/googleapis/rpc/status"

	pb "example.com/flow/examples/ingest/ingestpb"
)

const method = "ingest.v1.Ingest/Upload"

// clients are those of the matrix: programs of ours around a library, which share a contract (clients/README.md), and
// tools as they are.
func clients(w *workshop) []*client {
	return []*client{
		{
			name: "grpc-go", install: w.installGo("grpcgo", "google.golang.org/grpc"),
			command: w.ours("grpcgo"),
		},
		{
			name: "grpc-js", install: w.installNode,
			command: w.ours("node", "clients/grpcjs/client.js"),
		},
		{
			name: "python3-grpcio", install: w.installPython,
			command: w.ours(python, "clients/python/client.py"),
		},
		{
			name: "connect-go", install: w.installGo("connectgo", "connectrpc.com/connect"),
			command: w.ours("connectgo"), deaf: true,
		},
		{
			name: "grpcurl", install: w.installTool("github.com/fullstorydev/grpcurl/cmd/grpcurl", "v1.9.4"),
			command: w.grpcurl, parse: parseGrpcurl, deaf: true, exitTells: true, once: true,
			cannot: map[string]string{
				"cancel":  "its Ctrl-C ends the process, as kill -9 does",
				"cut off": "it makes one call and ends",
			},
		},
		{
			name: "ghz", install: w.installTool("github.com/bojand/ghz/cmd/ghz", "v0.121.0"),
			command: w.ghz, parse: parseGhz, deaf: true,
			cannot: map[string]string{
				"shut down": "its report takes a stream that was refused before its header for a success, " +
					"if a Send was the first to see it",
				"cancel":                       "its Ctrl-C closes the connection, as kill -9 does",
				"restart and resume (example)": "it shows no trailers, so it is not known what to send again",
				"cut off":                      "it makes one call and ends",
			},
			partly: "its report has the code and the message, neither details nor trailers nor the answer",
		},
	}
}

// ours is the command of a client that follows the contract.
func (w *workshop) ours(program string, args ...string) func(*rig, route, *script) (*exec.Cmd, error) {
	return func(r *rig, to route, s *script) (*exec.Cmd, error) {
		address := r.address(to)
		if s.via != "" {
			address = s.via
		}
		args := append(args[:len(args):len(args)], "--target", address)
		if to.tls {
			args = append(args, "--ca", r.trust)
		}
		if s.deadline > 0 {
			args = append(args, "--deadline", s.deadline.String())
		}
		if s.resume {
			args = append(args, "--resume")
		}
		if s.session != "" {
			args = append(args, "--session", s.session)
		}
		cmd := exec.Command(w.program(program), args...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+w.generated)
		return cmd, nil
	}
}

// grpcurl reads NDJSON, and learns of the service by reflection.
func (w *workshop) grpcurl(r *rig, to route, s *script) (*exec.Cmd, error) {
	args := []string{"-v", "-format-error", "-d", "@"}
	if to.tls {
		args = append(args, "-cacert", r.trust)
	} else {
		args = append(args, "-plaintext")
	}
	if s.deadline > 0 {
		args = append(args, "-max-time", fmt.Sprint(s.deadline.Seconds()))
	}
	return exec.Command(w.program("grpcurl"), append(args, r.address(to), method)...), nil
}

var (
	grpcurlTrailers = regexp.MustCompile(`(?s)\nResponse trailers received:\n(.*?)\nSent \d+ request`)
	grpcurlStored   = regexp.MustCompile(`"stored": "(\d+)"`)
)

func parseGrpcurl(stdout, stderr []byte) ([]outcome, error) {
	o := outcome{Trailers: map[string]string{}}
	m := grpcurlTrailers.FindSubmatch(stdout)
	if m == nil {
		return nil, fmt.Errorf("grpcurl printed no trailers: %s%s", shorten(string(stdout)), shorten(string(stderr)))
	}
	for line := range strings.Lines(string(m[1])) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			o.Trailers[name] = value
		}
	}
	if m := grpcurlStored.FindSubmatch(stdout); m != nil {
		if _, err := fmt.Sscan(string(m[1]), &o.Stored); err != nil {
			return nil, err
		}
	}
	if len(stderr) > 0 {
		var st spb.Status
		if err := protojson.Unmarshal(stderr, &st); err != nil {
			return nil, fmt.Errorf("grpcurl printed %q: %w", shorten(string(stderr)), err)
		}
		var err error
		o.Code, o.Message = codes.Code(st.GetCode()), st.GetMessage()
		if o.Status, err = proto.Marshal(&st); err != nil {
			return nil, err
		}
	}
	return []outcome{o}, nil
}

// ghz takes all that it sends from a file.
func (w *workshop) ghz(r *rig, to route, s *script) (*exec.Cmd, error) {
	all := s.records
	args := []string{"--call", method, "-n", "1", "-c", "1", "-O", "json"}
	if s.then == trickle {
		all = append(all[:len(all):len(all)], trickled(len(all), 3000)...)
		args = append(args, "--stream-interval", time.Millisecond.String())
	}
	text, err := json.Marshal(all) // the names in pb's JSON tags are those of the fields
	if err != nil {
		return nil, err
	}
	file := filepath.Join(r.dir, "ghz.json")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	args = append(args, "-D", file)
	if to.tls {
		args = append(args, "--cacert", r.trust)
	} else {
		args = append(args, "--insecure")
	}
	if s.deadline > 0 {
		args = append(args, "--timeout", s.deadline.String())
	}
	return exec.Command(w.program("ghz"), append(args, r.address(to))...), nil
}

// trickled are n records that follow the first ones.
func trickled(first, n int) []*pb.Record {
	all := make([]*pb.Record, n)
	for i := range all {
		all[i] = record(uint64(first+i+1), "trickle", "x")
	}
	return all
}

func parseGhz(stdout, stderr []byte) ([]outcome, error) {
	var report struct {
		Details []struct{ Error, Status string }
	}
	err := json.Unmarshal(stdout, &report)
	if err == nil && len(report.Details) == 0 {
		err = errors.New("no call in it")
	}
	if err != nil {
		return nil, fmt.Errorf("ghz printed %q: %w", shorten(string(stdout)+string(stderr)), err)
	}
	var all []outcome
	for _, d := range report.Details {
		o := outcome{blind: true}
		for o.Code.String() != d.Status {
			if o.Code++; o.Code > codes.Unauthenticated {
				return nil, fmt.Errorf("ghz knows of a status %q", d.Status)
			}
		}
		_, o.Message, _ = strings.Cut(d.Error, " desc = ")
		all = append(all, o)
	}
	return all, nil
}
