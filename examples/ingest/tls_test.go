package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// certificate writes a PEM file for 127.0.0.1 that signs itself.
func certificate(t *testing.T) (file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{{127, 0, 0, 1}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "tls.pem")
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestTLSTrustsItsFileAndNothingElse(t *testing.T) {
	file := certificate(t)
	if code, out, errs := try(t, context.Background(), "", "-records", "500", "-tls", file); code != exitOK || !strings.HasSuffix(out, yes) {
		t.Errorf("in one process: exit code %d\n%s%s", code, out, errs)
	}
	s := startServing(t, "-serve", "127.0.0.1:0", "-tls", file)
	for name, c := range map[string]struct {
		args []string
		code int
	}{
		"the server's":  {[]string{"-tls", file}, exitOK},
		"another":       {[]string{"-tls", certificate(t)}, exitFailed},
		"without TLS":   {nil, exitFailed},
		"no such file":  {[]string{"-tls", file + "x"}, exitFailed},
		"no PEM at all": {[]string{"-tls", "tls_test.go"}, exitFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			code, _, errs := try(t, context.Background(), "", append(c.args, "-connect", s.addr, "-records", "50")...)
			if code != c.code {
				t.Errorf("exit code %d, want %d: %s", code, c.code, errs)
			}
		})
	}
}
