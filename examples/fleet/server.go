package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// runServer is a NATS server: its port, and the folder of its files.
func runServer(ctx context.Context, args []string) error {
	port, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: args[1], NoLog: true, NoSigs: true,
	})
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
