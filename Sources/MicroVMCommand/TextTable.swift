/// Rows of cells, made into lines with aligned columns.
enum TextTable {
    static func lines(_ rows: [[String]]) -> [String] {
        var widths: [Int] = []
        for row in rows {
            for (column, cell) in row.enumerated() {
                if column == widths.count { widths.append(0) }
                // A single long name must not push all the others to the right.
                widths[column] = max(widths[column], min(cell.count, 48))
            }
        }
        return rows.map { row in
            var line = row.enumerated().map { $1.padded(to: widths[$0]) }.joined(separator: "  ")
            while line.last == " " { line.removeLast() }
            return line
        }
    }
}
