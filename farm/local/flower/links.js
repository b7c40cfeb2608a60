// Links from Flower's pages to the farm's: Flower itself escapes every value that it shows.
(function ($) {
  "use strict";

  function link(cell, address, text) {
    // What isn't an address of the web stays text.
    if (!cell || !/^https?:\/\//.test(address || "")) return;
    const anchor = document.createElement("a");
    anchor.href = address;
    anchor.textContent = text;
    cell.replaceChildren(anchor);
  }

  // The task list: its columns `job` and `build`.
  $(document).on("draw.dt", "#tasks-table", function () {
    const table = $(this).DataTable();
    const columns = table.columns().dataSrc().toArray();
    table.rows({ page: "current" }).every(function (row) {
      const task = this.data();
      const cell = (name) => table.cell(row, columns.indexOf(name)).node();
      link(cell("job"), task.job_page, "job " + task.job);
      link(cell("build"), task.build_page, task.build);
    });
  });

  // A task's page: the rows `Job page` and `Build page`.
  $(function () {
    for (const label of document.querySelectorAll("#task-page dt")) {
      if (/^(Job|Build) page$/.test(label.textContent.trim())) {
        const value = label.nextElementSibling;
        link(value, value.textContent.trim(), value.textContent.trim());
      }
    }
  });
})(jQuery);
