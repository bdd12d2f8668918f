package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// fleet is the generated input: devices that report in turns by chance, the same in every run.
func fleet(devices, records int, yield func(key, text string) bool) {
	chance := rand.New(rand.NewPCG(1, 2))
	temperature := make([]float64, devices)
	for range records {
		d := chance.IntN(devices)
		temperature[d] += chance.NormFloat64()
		if !yield(device(d+1), fmt.Sprintf("temperature %.2f battery %d", 20+temperature[d], chance.IntN(101))) {
			return
		}
	}
}

func device(n int) string { return "device-" + strconv.Itoa(n) }

func isDevice(key string, devices int) bool {
	n, err := strconv.Atoi(strings.TrimPrefix(key, "device-"))
	return err == nil && n >= 1 && n <= devices && key == device(n)
}
