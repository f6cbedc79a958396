package dev_test

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/parleychat/parley/cmd/parley/dev"
	"github.com/parleychat/parley/pkg/cache"
	"github.com/parleychat/parley/pkg/event"
	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/service"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/pkg/testkit"
	authv1 "github.com/parleychat/parley/proto/gen/parley/auth/v1"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	eventv1 "github.com/parleychat/parley/proto/gen/parley/event/v1"
	messagingv1 "github.com/parleychat/parley/proto/gen/parley/messaging/v1"
	"github.com/parleychat/parley/proto/gen/parley/messaging/v1/messagingv1connect"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	password = "tr0mbone-lantern"
	grace    = 14 * 24 * time.Hour
	// retention is how long events are kept, in outboxes and streams.
	retention = 3 * 24 * time.Hour
)

// canaries are what tells of the person; body is what the person wrote to others.
var (
	canaries = []string{"kanariA", "kanariB", "kanarienvogel", "Tweety Kanari", "singt gern", "198.51.100.23", "Vogelkäfig"}
	body     = "piep-an-berta"
)

// start runs all services of the build, with one clock.
func start(t *testing.T) *servicetest.Harness {
	t.Helper()
	secret := base64.StdEncoding.EncodeToString([]byte(strings.Repeat("s", 32)))
	return servicetest.Start(t, servicetest.Options{Settings: []string{
		"PARLEY_AUTH_KEY_ENCRYPTION_KEY=" + secret, "PARLEY_AUTH_REFRESH_SECRET=" + secret, "PARLEY_AUTH_PASSWORD_PEPPER=" + secret,
		"PARLEY_AUTH_BCRYPT_COST=4", "PARLEY_AUTH_INSECURE_PASSWORD_HASHING=true",
	}}, dev.Domains()...)
}

func register(t *testing.T, h *servicetest.Harness, address string, req *authv1.RegisterRequest) (servicetest.Caller, uuid.UUID) {
	t.Helper()
	ctx, call := connect.NewClientContext(t.Context())
	call.RequestHeader().Set("X-Forwarded-For", address)
	req.Password = password
	res, err := authv1connect.NewAuthServiceClient(h.Dial("auth", h.Anonymous())).Register(ctx, req)
	require.NoError(t, err)
	id, err := uuid.Parse(res.GetUserId())
	require.NoError(t, err)
	return h.Token(res.GetTokens().GetAccessToken()), id
}

// bird registers the person who will leave, and has it leave traces everywhere.
func bird(t *testing.T, h *servicetest.Harness, other uuid.UUID) (servicetest.Caller, uuid.UUID, string) {
	t.Helper()
	caller, id := register(t, h, "198.51.100.23", &authv1.RegisterRequest{
		Email: "kanarienvogel@example.org", Username: "kanariA", DisplayName: "Tweety Kanari", DeviceName: "Vogelkäfig",
	})
	_, err := userv1connect.NewProfileServiceClient(h.Dial("user", caller)).UpdateProfile(t.Context(), &userv1.UpdateProfileRequest{
		Bio: "singt gern", Locale: "de-CH", Version: 1, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"bio", "locale"}},
	})
	require.NoError(t, err)
	_, err = authv1connect.NewUsernameServiceClient(h.Dial("auth", caller)).ChangeUsername(t.Context(), &authv1.ChangeUsernameRequest{Username: "kanariB"})
	require.NoError(t, err)
	messages := messagingv1connect.NewMessagingServiceClient(h.Dial("messaging", caller))
	res, err := messages.CreateDirectConversation(t.Context(), &messagingv1.CreateDirectConversationRequest{UserId: other.String()})
	require.NoError(t, err)
	conversation := res.GetConversation().GetId()
	_, err = messages.SendMessage(t.Context(), &messagingv1.SendMessageRequest{
		ConversationId: conversation, ClientMessageId: uuid.NewString(), Text: body,
	})
	require.NoError(t, err)
	return caller, id, conversation
}

// Whoever is deleted is forgotten by all services, also by one that was down at the time.
func TestEveryServiceForgetsWhoIsDeleted(t *testing.T) {
	t.Parallel()
	h := start(t)
	_, bertaID := register(t, h, "203.0.113.9", &authv1.RegisterRequest{Email: "berta@example.org", Username: "berta"})
	caller, id, conversation := bird(t, h, bertaID)
	require.NotEmpty(t, found(t, h, canaries), "the traces are there")
	_, err := userv1connect.NewDeletionServiceClient(h.Dial("user", caller)).RequestDeletion(t.Context(), &userv1.RequestDeletionRequest{})
	require.NoError(t, err)

	late := h.Instances("messaging")[0]
	require.NoError(t, late.Stop())
	h.Clock.Advance(grace + time.Minute)
	require.Eventually(t, func() bool { return len(done(t, h, id)) == len(dev.Domains())-1 }, time.Minute, 100*time.Millisecond, "those that run report")
	require.NotContains(t, done(t, h, id), "messaging")
	h.Add(definition(t, "messaging"))
	require.Eventually(t, func() bool { return len(done(t, h, id)) == len(dev.Domains()) }, time.Minute, 100*time.Millisecond, "the last one catches up")

	// What events told of the person lives as long as events do.
	h.Clock.Advance(retention + 2*24*time.Hour)
	require.EventuallyWithT(t, func(c *assert.CollectT) { assert.Empty(c, found(t, h, canaries)) }, time.Minute, 500*time.Millisecond,
		"the tables hold nothing any more")
	require.Empty(t, told(t, h, canaries))
	require.Empty(t, cached(t, canaries))

	// The other's conversation is whole.
	bertaNow := h.User(bertaID)
	log, err := messagingv1connect.NewMessagingServiceClient(h.Dial("messaging", bertaNow)).ListEvents(t.Context(),
		&messagingv1.ListEventsRequest{ConversationId: conversation})
	require.NoError(t, err)
	require.Len(t, log.GetEntries(), 2)
	require.Equal(t, body, log.GetEntries()[1].GetMessage().GetText())
	require.Equal(t, id.String(), log.GetEntries()[1].GetSenderId())
	sender, err := userv1connect.NewUserServiceClient(h.Dial("user", bertaNow)).GetUser(t.Context(), &userv1.GetUserRequest{UserId: id.String()})
	require.NoError(t, err)
	require.True(t, sender.GetUser().GetDeleted())
	require.Empty(t, sender.GetUser().GetUsername())
	require.Equal(t, []string{"messaging.entry"}, withoutPartition(found(t, h, []string{body})), "what was written to others is theirs")
}

// An export has a part of every service; one without PortabilityService would make it fail.
func TestExportHasAPartOfEveryService(t *testing.T) {
	t.Parallel()
	h := start(t)
	_, bertaID := register(t, h, "203.0.113.9", &authv1.RegisterRequest{Email: "berta@example.org", Username: "berta"})
	caller, _, _ := bird(t, h, bertaID)
	stream, err := userv1connect.NewExportServiceClient(h.Dial("user", caller)).ExportData(t.Context(), &userv1.ExportDataRequest{})
	require.NoError(t, err)
	var archive bytes.Buffer
	for stream.Receive() {
		archive.Write(stream.Msg().GetData())
	}
	require.NoError(t, stream.Err())
	require.NoError(t, stream.Close())
	reader, err := zip.NewReader(bytes.NewReader(archive.Bytes()), int64(archive.Len()))
	require.NoError(t, err)
	folders, all := map[string]bool{}, ""
	for _, f := range reader.File {
		folder, _, _ := strings.Cut(f.Name, "/")
		folders[folder] = true
		content, err := f.Open()
		require.NoError(t, err)
		text, err := io.ReadAll(content)
		require.NoError(t, err)
		all += string(text)
	}
	for _, d := range dev.Domains() {
		require.True(t, folders[d.Name], d.Name)
	}
	for _, text := range append([]string{body}, canaries...) {
		require.Contains(t, all, text)
	}
	require.NotContains(t, all, "berta@example.org")
}

func definition(t *testing.T, name string) service.Definition {
	t.Helper()
	for _, d := range dev.Domains() {
		if d.Name == name {
			return d
		}
	}
	t.Fatalf("no service %s", name)
	return service.Definition{}
}

// done lists the services that have reported.
func done(t *testing.T, h *servicetest.Harness, id uuid.UUID) []string {
	t.Helper()
	admin := h.UserWithRole(uuid.New(), identity.RoleAdmin)
	res, err := userv1connect.NewDeletionServiceClient(h.Dial("user", admin)).GetErasure(t.Context(), &userv1.GetErasureRequest{UserId: id.String()})
	require.NoError(t, err)
	var names []string
	for _, s := range res.GetServices() {
		if s.GetDoneAt() != nil {
			names = append(names, s.GetService())
		}
	}
	return names
}

// found lists the tables of all services that hold one of the texts, as text or in bytes.
func found(t *testing.T, h *servicetest.Harness, texts []string) []string {
	t.Helper()
	var patterns []string
	for _, text := range texts {
		patterns = append(patterns, "%"+text+"%", "%"+hex.EncodeToString([]byte(text))+"%")
	}
	var places []string
	for _, d := range dev.Domains() {
		pool := h.DB(d.Name)
		rows, err := pool.Query(t.Context(), `SELECT tablename FROM pg_tables WHERE schemaname = current_schema()`)
		require.NoError(t, err)
		var tables []string
		for rows.Next() {
			var name string
			require.NoError(t, rows.Scan(&name))
			tables = append(tables, name)
		}
		require.NoError(t, rows.Err())
		for _, table := range tables {
			var holds bool
			err := pool.QueryRow(t.Context(), fmt.Sprintf(`SELECT EXISTS (SELECT FROM %q AS r WHERE r::text ILIKE ANY ($1))`, table), patterns).Scan(&holds)
			// A partition may be dropped between the two questions.
			if err != nil && strings.Contains(err.Error(), "42P01") {
				continue
			}
			require.NoError(t, err, table)
			if holds {
				places = append(places, d.Name+"."+table)
			}
		}
	}
	return places
}

// withoutPartition shortens the names of partitions, of which a table and the partition itself are one place.
func withoutPartition(places []string) []string {
	var short []string
	for _, p := range places {
		name, _, _ := strings.Cut(p, "_")
		if len(short) == 0 || short[len(short)-1] != name {
			short = append(short, name)
		}
	}
	return short
}

// told lists the events of all streams that hold one of the texts, those apart that the streams would have
// dropped by now: the server's clock does not move with the test's.
func told(t *testing.T, h *servicetest.Harness, texts []string) []string {
	t.Helper()
	var hits []string
	for _, d := range dev.Domains() {
		for _, ev := range events(t, h, event.StreamName(d.Name)) {
			if h.Clock.Now().Sub(ev.GetTime().AsTime()) > retention {
				continue
			}
			for _, text := range texts {
				if raw, err := proto.Marshal(ev); err != nil || bytes.Contains(bytes.ToLower(raw), bytes.ToLower([]byte(text))) {
					hits = append(hits, ev.GetType()+" holds "+text)
				}
			}
		}
	}
	return hits
}

// cached lists the keys in Redis that hold one of the texts in their name or their value. Other tests use the same
// server; nobody else has these texts.
func cached(t *testing.T, texts []string) []string {
	t.Helper()
	redis, err := cache.Open(testkit.Redis(t)+"?protocol=2&client_cache=0", "erasure-test")
	require.NoError(t, err)
	defer redis.Close()
	var hits []string
	for cursor, more := uint64(0), true; more; more = cursor != 0 {
		page, err := redis.Do(t.Context(), redis.B().Scan().Cursor(cursor).Count(500).Build()).AsScanEntry()
		require.NoError(t, err)
		cursor = page.Cursor
		for _, key := range page.Elements {
			// A key of another type, or one that is gone, has no text of ours as its value.
			value, _ := redis.Do(t.Context(), redis.B().Get().Key(key).Build()).ToString()
			for _, text := range texts {
				if strings.Contains(key+value, text) {
					hits = append(hits, key)
				}
			}
		}
	}
	return hits
}

func events(t *testing.T, h *servicetest.Harness, stream string) []*eventv1.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	s, err := h.Bus.JetStream().Stream(ctx, stream)
	require.NoError(t, err)
	info, err := s.Info(ctx)
	require.NoError(t, err)
	var all []*eventv1.Event
	for seq := info.State.FirstSeq; seq <= info.State.LastSeq && seq > 0; seq++ {
		msg, err := s.GetMsg(ctx, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		require.NoError(t, err)
		some, err := event.Read(msg.Header, msg.Data)
		require.NoError(t, err)
		all = append(all, some...)
	}
	return all
}
