package user

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/parleychat/parley/pkg/identity"
	"github.com/parleychat/parley/pkg/page"
	userv1 "github.com/parleychat/parley/proto/gen/parley/user/v1"
	"github.com/parleychat/parley/services/user/internal/db"
)

// likenessFrom is the length of a query, in characters, from which names are also
// compared by their trigrams: two characters are like everything.
const likenessFrom = 3

// searchCandidates are compared and sorted for one search at most, of each kind: what
// a search costs does not grow with the number of people.
const searchCandidates = 1000

// SearchUsers implements the RPC. Hidden people are left out by the conditions of
// the queries themselves, so that neither their number nor the order of the
// others tells of them.
func (s *Service) SearchUsers(ctx context.Context, req *userv1.SearchUsersRequest) (*userv1.SearchUsersResponse, error) {
	caller := identity.From(ctx).UserID
	if err := s.searches.Check(ctx, caller.String()); err != nil {
		return nil, err
	}
	typed := fold(req.GetQuery())
	if !searchable(typed) {
		return &userv1.SearchUsersResponse{}, nil
	}
	size := page.Size(req.GetPageSize(), 20, 50)
	queries := db.New(s.pool)
	begin, err := queries.DirectoryByPrefix(ctx, db.DirectoryByPrefixParams{
		Pattern: likePrefix(typed), Caller: caller, Typed: typed, PageSize: size, Candidates: searchCandidates,
	})
	if err != nil {
		return nil, fmt.Errorf("search by prefix: %w", err)
	}
	found := make([]db.DirectoryByPrefixRow, 0, size)
	found = append(found, begin...)
	if len(found) < int(size) && len([]rune(typed)) >= likenessFrom {
		alike, err := queries.DirectoryByLikeness(ctx, db.DirectoryByLikenessParams{
			Typed: typed, Caller: caller, PageSize: size, Candidates: searchCandidates,
		})
		if err != nil {
			return nil, fmt.Errorf("search by likeness: %w", err)
		}
		found = addNew(found, alike, int(size))
	}
	res := &userv1.SearchUsersResponse{Users: make([]*userv1.User, 0, len(found))}
	for _, row := range found {
		res.Users = append(res.Users, &userv1.User{
			Id: row.ID.String(), Username: row.Username, DisplayName: row.DisplayName, Bio: row.Bio,
			CreatedAt: timestamppb.New(row.CreatedAt), Version: row.Version,
		})
	}
	return res, nil
}

// addNew adds those who are not among the found yet, up to size.
func addNew(found []db.DirectoryByPrefixRow, alike []db.DirectoryByLikenessRow, size int) []db.DirectoryByPrefixRow {
	known := make(map[uuid.UUID]bool, len(found))
	for _, row := range found {
		known[row.ID] = true
	}
	for _, row := range alike {
		if len(found) < size && !known[row.ID] {
			found = append(found, db.DirectoryByPrefixRow(row))
		}
	}
	return found
}
