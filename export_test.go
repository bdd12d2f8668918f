package flow

// BeginSpread has f's streams begin as if messages had been seen to take some microseconds each: where time stands still
// none is seen to.
func BeginSpread[T any](f *Flow[T]) { f.receiver.begin = paceMedium }
