package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// runServer is a NATS server: its address, the folder of its files, its address for other servers, and those of all of them,
// joined by commas.
func runServer(ctx context.Context, args []string) error {
	o := &server.Options{JetStream: true, StoreDir: args[1], NoLog: true, NoSigs: true}
	var err error
	if o.Host, o.Port, err = splitAddress(args[0]); err != nil {
		return err
	}
	if routes := strings.Split(args[3], ","); len(routes) > 1 {
		o.ServerName, o.Cluster.Name = args[2], "fleet"
		if o.Cluster.Host, o.Cluster.Port, err = splitAddress(args[2]); err != nil {
			return err
		}
		for _, address := range routes {
			o.Routes = append(o.Routes, &url.URL{Scheme: "nats", Host: address})
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	s.Start()
	if !s.ReadyForConnections(10 * time.Second) {
		return errors.New("server: not ready after 10 seconds")
	}
	<-ctx.Done()
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, number, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(number)
	return host, port, err
}
