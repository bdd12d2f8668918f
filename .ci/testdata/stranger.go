package main

import (
	"context"
	"fmt"
	"log"

	"example.com/flow"
)

func main() {
	store := func(context.Context, flow.Message[string]) error { return nil }
	device := func(s string) string { return s[:1] }
	f, err := flow.New(store, device, flow.Options{Ordering: flow.OrderingOptions{Mode: flow.OrderingKeyedFIFO}})
	if err != nil {
		log.Fatal(err)
	}
	readings := make(chan string, 3)
	readings <- "a1"
	readings <- "b1"
	readings <- "a2"
	close(readings)
	sum, err := f.Run(context.Background(), flow.FromChan(context.Background(), readings))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("stored", sum.Succeeded)
}
