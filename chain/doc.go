// Package chain holds tests of flow's interceptor between the interceptors that servers usually have: logging, selector
// and recovery of go-grpc-middleware, and OpenTelemetry's stats handler beside them, in the order that flow's README says.
package chain
