package user_test

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	"github.com/parleychat/parley/pkg/portability"
	"github.com/parleychat/parley/pkg/rpc"
	"github.com/parleychat/parley/pkg/servicetest"
	"github.com/parleychat/parley/proto/gen/parley/auth/v1/authv1connect"
	errorv1 "github.com/parleychat/parley/proto/gen/parley/error/v1"
	portabilityv1 "github.com/parleychat/parley/proto/gen/parley/portability/v1"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/proto/gen/parley/user/v1/userv1connect"
)

// exporter hands out what its function writes.
type exporter func(ctx context.Context, user string, files *portability.Files) error

func (e exporter) ExportPerson(
	ctx context.Context, req *portabilityv1.ExportPersonRequest, stream *connect.ServerStream[portabilityv1.ExportPersonResponse],
) error {
	files := portability.To(stream.Send)
	if err := e(ctx, req.GetUserId(), files); err != nil {
		return err
	}
	return files.Flush()
}

func startExport(t *testing.T, options servicetest.Options, e exporter) (*servicetest.Harness, *fakeAuth) {
	t.Helper()
	options.Services = []string{"user", "auth"}
	return startWith(t, options, func(mux *http.ServeMux) { mux.Handle(authv1connect.NewPortabilityServiceHandler(e)) })
}

// export returns the archive, as far as it came.
func export(t *testing.T, h *servicetest.Harness, c servicetest.Caller) ([]byte, error) {
	t.Helper()
	stream, err := userv1connect.NewExportServiceClient(h.Dial("user", c)).ExportData(t.Context(), &userv1.ExportDataRequest{})
	require.NoError(t, err)
	var archive bytes.Buffer
	for stream.Receive() {
		require.LessOrEqual(t, len(stream.Msg().GetData()), 64<<10)
		archive.Write(stream.Msg().GetData())
	}
	require.NoError(t, stream.Close())
	return archive.Bytes(), stream.Err()
}

func unzip(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	reader, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	require.NoError(t, err)
	files := map[string]string{}
	for _, f := range reader.File {
		content, err := f.Open()
		require.NoError(t, err)
		data, err := io.ReadAll(content)
		require.NoError(t, err)
		files[f.Name] = string(data)
	}
	return files
}

func TestExportData(t *testing.T) {
	t.Parallel()
	large := strings.Repeat("All work and no play. ", 10_000)
	for name, options := range map[string]servicetest.Options{"InProcess": {}, "OverTheNetwork": {H2C: true}} {
		t.Run("IsOneArchiveOfAllServices"+name, func(t *testing.T) {
			t.Parallel()
			h, auth := startExport(t, options, func(_ context.Context, user string, files *portability.Files) error {
				if err := files.JSON("account.json", map[string]string{"id": user}); err != nil {
					return err
				}
				if err := files.Begin("sessions.ndjson"); err != nil {
					return err
				}
				for range 20 {
					if err := files.Line(large); err != nil {
						return err
					}
				}
				return nil
			})
			anna := h.User(named(t, h, "anna", "Anna"))
			auth.confirms(anna, h.Clock.Now())
			archive, err := export(t, h, anna)
			require.NoError(t, err)
			files := unzip(t, archive)
			require.Len(t, files, 5)
			require.JSONEq(t, `["2026-03-16T12:00:00Z"]`, files["user/exports.json"])
			require.Contains(t, files["auth/account.json"], anna.UserID.String())
			require.Equal(t, strings.Repeat(`"`+large+"\"\n", 20), files["auth/sessions.ndjson"])
			require.JSONEq(t, `{"id":"`+anna.UserID.String()+`","username":"anna","display_name":"Anna","bio":"","locale":"",
				"discoverable":true,"created_at":"2026-03-16T12:00:00Z","version":1}`, files["user/profile.json"])
			var manifest struct {
				Services []string `json:"services"`
				Files    []struct {
					Name   string `json:"name"`
					SHA256 string `json:"sha256"`
				} `json:"files"`
			}
			require.NoError(t, json.Unmarshal([]byte(files["manifest.json"]), &manifest))
			require.Equal(t, []string{"auth", "user"}, manifest.Services)
			for _, f := range manifest.Files {
				sum := sha256.Sum256([]byte(files[f.Name]))
				require.Equal(t, hex.EncodeToString(sum[:]), f.SHA256, f.Name)
			}
			require.Len(t, manifest.Files, 4)
		})
	}
	t.Run("NeedsAFreshConfirmation", func(t *testing.T) {
		t.Parallel()
		h, _ := startExport(t, servicetest.Options{}, func(context.Context, string, *portability.Files) error { return nil })
		archive, err := export(t, h, h.User(named(t, h, "anna", "Anna")))
		requireReason(t, err, connect.CodeFailedPrecondition, errorv1.Reason_REASON_CONFIRMATION_REQUIRED)
		require.Empty(t, archive)
	})
	t.Run("IsLimitedPerDay", func(t *testing.T) {
		t.Parallel()
		h, auth := startExport(t, servicetest.Options{Settings: []string{"PARLEY_USER_EXPORTS_PER_DAY=2"}},
			func(context.Context, string, *portability.Files) error { return nil })
		anna := h.User(named(t, h, "anna", "Anna"))
		auth.confirms(anna, h.Clock.Now())
		for range 2 {
			_, err := export(t, h, anna)
			require.NoError(t, err)
			h.Clock.Advance(time.Minute)
		}
		_, err := export(t, h, anna)
		requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_RATE_LIMITED)
		wait := rpc.InfoOf(err).GetRetryAfter().AsDuration()
		require.Equal(t, 24*time.Hour-2*time.Minute, wait)
		h.Clock.Advance(wait)
		auth.confirms(anna, h.Clock.Now())
		_, err = export(t, h, anna)
		require.NoError(t, err)
	})
	t.Run("OfAServiceThatFailsIsNoArchive", func(t *testing.T) {
		t.Parallel()
		h, auth := startExport(t, servicetest.Options{}, func(_ context.Context, _ string, files *portability.Files) error {
			if err := files.JSON("account.json", 1); err != nil {
				return err
			}
			return rpc.Error(connect.CodeInternal, errorv1.Reason_REASON_INTERNAL, "a secret cause")
		})
		anna := h.User(named(t, h, "anna", "Anna"))
		auth.confirms(anna, h.Clock.Now())
		var archive []byte
		for range 7 { // more than a day has: what fails by our fault is not counted
			var err error
			archive, err = export(t, h, anna)
			requireReason(t, err, connect.CodeUnavailable, errorv1.Reason_REASON_UNAVAILABLE)
			require.NotContains(t, err.Error(), "secret")
		}
		_, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		require.Error(t, err)
	})
	t.Run("TakesNoPathFromAService", func(t *testing.T) {
		t.Parallel()
		h, auth := startExport(t, servicetest.Options{}, func(_ context.Context, _ string, files *portability.Files) error {
			return files.JSON("../../run.json", 1)
		})
		anna := h.User(named(t, h, "anna", "Anna"))
		auth.confirms(anna, h.Clock.Now())
		_, err := export(t, h, anna)
		requireReason(t, err, connect.CodeInternal, errorv1.Reason_REASON_INTERNAL)
	})
	t.Run("HasBoundedPlaces", func(t *testing.T) {
		t.Parallel()
		began, end := make(chan struct{}), make(chan struct{})
		h, auth := startExport(t, servicetest.Options{Settings: []string{"PARLEY_USER_EXPORT_PLACES=1"}},
			func(context.Context, string, *portability.Files) error { close(began); <-end; return nil })
		anna := h.User(named(t, h, "anna", "Anna"))
		auth.confirms(anna, h.Clock.Now())
		first := make(chan error, 1)
		go func() {
			stream, err := userv1connect.NewExportServiceClient(h.Dial("user", anna)).ExportData(t.Context(), &userv1.ExportDataRequest{})
			for err == nil && stream.Receive() {
				continue
			}
			if err == nil {
				err = stream.Err()
			}
			first <- err
		}()
		<-began
		berta := h.User(named(t, h, "berta", "Berta"))
		auth.confirms(berta, h.Clock.Now())
		_, err := export(t, h, berta)
		requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED)
		close(end)
		require.NoError(t, <-first)
	})
}

// more gives out until the reader has gone, which is how a service ends that nobody
// reads.
func more(ended chan<- error) exporter {
	noise := make([]byte, 48<<10) // longer than what a zip looks back over
	_, _ = rand.Read(noise)       // never fails, by its documentation
	line := base64.StdEncoding.EncodeToString(noise)
	return func(_ context.Context, _ string, files *portability.Files) error {
		err := files.Begin("much.ndjson")
		for err == nil {
			err = files.Line(line)
		}
		ended <- err
		return err
	}
}

// Somebody who begins an export and reads nothing of it holds a place for a while,
// not for good, and no second one.
func TestExportWhoseReaderStopsReading(t *testing.T) {
	t.Parallel()
	ended := make(chan error, 1)
	h, auth := startExport(t, servicetest.Options{
		H2C: true, Settings: []string{"PARLEY_USER_EXPORT_PLACES=2", "PARLEY_USER_EXPORT_STALL=500ms"},
	}, more(ended))
	anna := h.User(named(t, h, "anna", "Anna"))
	auth.confirms(anna, h.Clock.Now())
	client := userv1connect.NewExportServiceClient(h.Dial("user", anna))
	hanging, err := client.ExportData(t.Context(), &userv1.ExportDataRequest{})
	require.NoError(t, err)
	require.True(t, hanging.Receive(), "it has begun")
	_, err = export(t, h, anna)
	requireReason(t, err, connect.CodeResourceExhausted, errorv1.Reason_REASON_OVERLOADED)
	select {
	case err := <-ended:
		require.Error(t, err)
	case <-time.After(30 * time.Second):
		require.Fail(t, "the export goes on without a reader")
	}
	require.Eventually(t, func() bool {
		again, err := client.ExportData(t.Context(), &userv1.ExportDataRequest{})
		require.NoError(t, err)
		began := again.Receive()
		require.NoError(t, again.Close())
		return began
	}, 30*time.Second, 100*time.Millisecond, "the place is free")
	_ = hanging.Close() // it was reset
}
