// Checks a log with the code by which Go checks its module mirror: golang.org/x/mod/sumdb, note and tlog.
//
//	outside log DIR VKEY              all of a directory of tiles, whose head VKEY has signed
//	outside inclusion FILE VKEY BODY  a tlog-proof, that the entry in the file BODY is in what VKEY has signed
//	outside consistency FILE VKEY OLD what a tlog-witness is sent, and the older checkpoint in the file OLD
//
// Ours are the paths of tiles and the framing of bundles, as C2SP has them. It prints ok and what was checked.
package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const height = 8 // of a tile: 256 hashes

func main() {
	did, err := check(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("ok", did)
}

func check(args []string) (string, error) {
	if len(args) < 3 {
		return "", errors.New("usage: outside log|inclusion|consistency …")
	}
	switch args[0] {
	case "log":
		return checkLog(args[1], args[2])
	case "inclusion":
		return checkInclusion(args[1], args[2], args[3])
	case "consistency":
		return checkConsistency(args[1], args[2], args[3])
	}
	return "", fmt.Errorf("%s: expected log, inclusion or consistency", args[0])
}

// open gives the tree of a signed checkpoint.
func open(data []byte, vkey string) (tlog.Tree, error) {
	var tree tlog.Tree
	verifier, err := note.NewVerifier(vkey)
	if err != nil {
		return tree, err
	}
	signed, err := note.Open(data, note.VerifierList(verifier))
	if err != nil {
		return tree, err
	}
	lines := strings.Split(signed.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		return tree, fmt.Errorf("checkpoint of %d lines, of %s", len(lines)-1, lines[0])
	}
	tree.N, err = strconv.ParseInt(lines[1], 10, 64)
	if err != nil {
		return tree, err
	}
	tree.Hash, err = tlog.ParseHash(lines[2])
	return tree, err
}

// tiles reads the hash tiles of a directory, each as far as it was asked for.
type tiles struct{ dir string }

func (t tiles) Height() int                             { return height }
func (t tiles) SaveTiles(tiles []tlog.Tile, _ [][]byte) {}

func (t tiles) ReadTiles(asked []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range asked {
		// tile/8/<L>/<N>: what comes after is the same in both.
		path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/", height), "tile/", 1)
		data, err := os.ReadFile(filepath.Join(t.dir, path))
		if err != nil {
			return nil, err
		}
		found = append(found, data)
	}
	return found, nil
}

// bodies reads the entries of a bundle, each with its length before it.
func bodies(data []byte) ([][]byte, error) {
	var found [][]byte
	for len(data) > 0 {
		if len(data) < 2 {
			return nil, errors.New("a bundle ends within a length")
		}
		n := int(data[0])<<8 | int(data[1])
		if len(data) < 2+n {
			return nil, errors.New("a bundle ends within an entry")
		}
		found, data = append(found, data[2:2+n]), data[2+n:]
	}
	return found, nil
}

func checkLog(dir, vkey string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		return "", err
	}
	tree, err := open(data, vkey)
	if err != nil {
		return "", err
	}
	// It authenticates every tile that it reads by the tree's root.
	hashes := tlog.TileHashReader(tree, tiles{dir})
	for first := int64(0); first < tree.N; first += 1 << height {
		if err := checkBundle(dir, tree, hashes, first); err != nil {
			return "", err
		}
	}
	for n := int64(1); n <= tree.N; n += 1 + tree.N/64 {
		proof, err := tlog.ProveTree(tree.N, n, hashes)
		if err != nil {
			return "", err
		}
		old, err := tlog.TreeHash(n, hashes)
		if err != nil {
			return "", err
		}
		if err := tlog.CheckTree(proof, tree.N, tree.Hash, n, old); err != nil {
			return "", fmt.Errorf("the tree of %d: %w", n, err)
		}
	}
	return fmt.Sprint(tree.N), nil
}

// checkBundle compares the entries from first on with the hashes of their leaves.
func checkBundle(dir string, tree tlog.Tree, hashes tlog.HashReader, first int64) error {
	tile := tlog.Tile{H: height, L: -1, N: first >> height, W: 1 << height}
	if left := tree.N - first; left < 1<<height {
		tile.W = int(left)
	}
	path := strings.Replace(tile.Path(), fmt.Sprintf("tile/%d/data/", height), "tile/entries/", 1)
	data, err := os.ReadFile(filepath.Join(dir, path))
	if err != nil {
		return err
	}
	found, err := bodies(data)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(found) != tile.W {
		return fmt.Errorf("%s: %d entries, expected %d", path, len(found), tile.W)
	}
	for i, body := range found {
		n := first + int64(i)
		leaf, err := hashes.ReadHashes([]int64{tlog.StoredHashIndex(0, n)})
		if err != nil {
			return err
		}
		if leaf[0] != tlog.RecordHash(body) {
			return fmt.Errorf("entry %d: its leaf hash is another", n+1)
		}
		if i != 0 && n != tree.N-1 {
			continue
		}
		proof, err := tlog.ProveRecord(tree.N, n, hashes)
		if err != nil {
			return err
		}
		if err := tlog.CheckRecord(proof, tree.N, tree.Hash, n, leaf[0]); err != nil {
			return fmt.Errorf("entry %d: %w", n+1, err)
		}
	}
	return nil
}

// proven splits what is served as a proof: the lines before, the path, the checkpoint.
func proven(file string, before int) ([]string, []tlog.Hash, []byte, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, nil, err
	}
	head, checkpoint, found := strings.Cut(string(data), "\n\n")
	lines := strings.Split(head, "\n")
	if !found || len(lines) < before {
		return nil, nil, nil, fmt.Errorf("%s: no proof", file)
	}
	var path []tlog.Hash
	for _, line := range lines[before:] {
		raw, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(raw) != tlog.HashSize {
			return nil, nil, nil, fmt.Errorf("%s: %q is no hash", file, line)
		}
		path = append(path, *(*tlog.Hash)(raw))
	}
	return lines[:before], path, []byte(checkpoint), nil
}

func checkInclusion(file, vkey, entry string) (string, error) {
	lines, path, checkpoint, err := proven(file, 2)
	if err != nil {
		return "", err
	}
	tree, err := open(checkpoint, vkey)
	if err != nil {
		return "", err
	}
	var index int64
	if _, err := fmt.Sscanf(lines[0]+" "+lines[1], "c2sp.org/tlog-proof@v1 index %d", &index); err != nil {
		return "", err
	}
	body, err := os.ReadFile(entry)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(index), tlog.CheckRecord(path, tree.N, tree.Hash, index, tlog.RecordHash(body))
}

func checkConsistency(file, vkey, older string) (string, error) {
	lines, path, checkpoint, err := proven(file, 1)
	if err != nil {
		return "", err
	}
	tree, err := open(checkpoint, vkey)
	if err != nil {
		return "", err
	}
	data, err := os.ReadFile(older)
	if err != nil {
		return "", err
	}
	old, err := open(data, vkey)
	if err != nil {
		return "", err
	}
	if lines[0] != fmt.Sprintf("old %d", old.N) {
		return "", fmt.Errorf("%s: the older checkpoint has %d entries", lines[0], old.N)
	}
	return fmt.Sprint(old.N), tlog.CheckTree(path, tree.N, tree.Hash, old.N, old.Hash)
}
