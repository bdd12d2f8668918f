package main

import (
	"crypto/tls"
	"fmt"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// serverCredentials are TLS with the certificate and key in the file of -tls; without one, none.
func (c *config) serverCredentials() (credentials.TransportCredentials, error) {
	if c.tls == "" {
		return insecure.NewCredentials(), nil
	}
	cert, err := tls.LoadX509KeyPair(c.tls, c.tls)
	if err != nil {
		return nil, fmt.Errorf("-tls: %w", err)
	}
	return credentials.NewServerTLSFromCert(&cert), nil
}

// clientCredentials are TLS that trusts the certificates in the file of -tls, and no other; without one, none.
func (c *config) clientCredentials() (credentials.TransportCredentials, error) {
	if c.tls == "" {
		return insecure.NewCredentials(), nil
	}
	creds, err := credentials.NewClientTLSFromFile(c.tls, "")
	if err != nil {
		return nil, fmt.Errorf("-tls: %w", err)
	}
	return creds, nil
}
