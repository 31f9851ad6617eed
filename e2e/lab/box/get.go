package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

type getCmd struct {
	URL     string        `arg:"" name:"url" help:"What to fetch."`
	Timeout time.Duration `help:"How long to wait for all of it." default:"3s"`
}

// Run prints what the server answered, as it came.
func (g *getCmd) Run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, g.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, g.URL, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", g.URL, res.Status)
	}
	_, err = io.Copy(os.Stdout, res.Body)
	return err
}
