// Package gossip keeps membership and the records that hosts publish.
package gossip

import (
	"context"
	"crypto/ed25519"

	"github.com/isthmus-net/isthmus/cluster"
	"github.com/isthmus-net/isthmus/transport"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
)

// Config is what a Cluster needs.
type Config struct {
	ID        cluster.HostID
	Transport *transport.Transport
	Cluster   func(ctx context.Context) (cluster.ID, error) // waits until known
	Info      cluster.HostInfo
	Join      []string
	Port      uint16
	DB        *bbolt.DB
	Identity  ed25519.PrivateKey
	Log       logrus.FieldLogger
}

type Cluster struct{}

func Open(Config) (*Cluster, error)              { panic("skeleton") }
func (c *Cluster) Run(ctx context.Context) error { panic("skeleton") }

// Publish takes the full set of own records. Before the first call, which may be empty, this host says nothing of itself and others keep what it said before its restart.
func (c *Cluster) Publish([]cluster.Record)        { panic("skeleton") }
func (c *Cluster) SetInfo(cluster.HostInfo)        { panic("skeleton") }
func (c *Cluster) Members() []cluster.Member       { panic("skeleton") }
func (c *Cluster) Streams() []cluster.Stream       { panic("skeleton") }
func (c *Cluster) Settled() bool                   { panic("skeleton") }
func (c *Cluster) Subscribe() <-chan struct{}      { panic("skeleton") }
func (c *Cluster) Forget(cluster.HostID)           { panic("skeleton") }
func (c *Cluster) Leave(ctx context.Context) error { panic("skeleton") }
