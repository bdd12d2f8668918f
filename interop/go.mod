module example.com/flow/interop

go 1.26.0

replace (
	example.com/flow => ../
	example.com/flow/examples => ../examples
)

require (
	connectrpc.com/connect v1.21.1
	example.com/flow v0.0.0
	example.com/flow/examples v0.0.0-00010101000000-000000000000
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

require (
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sync v0.24.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.42.0 // indirect
)
