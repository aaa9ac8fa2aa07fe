// What can be wrong before anything else runs. A plain script: browsers do not run modules from a disk.
(function () {
  var simd = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  var problem = "";
  if (location.protocol === "file:")
    problem = "Browsers do not run this page from a disk. Start a web server in its folder, for example: python -m http.server";
  else if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(simd)))
    problem = "This browser has no WebAssembly with SIMD, which this page needs. Use a newer one.";
  else if (typeof DecompressionStream !== "function" || !Float32Array.prototype.toSorted)
    problem = "This browser is too old for this page. Use a newer one: Chrome 110, Firefox 115, Safari 16.4, or later.";
  document.addEventListener("DOMContentLoaded", function () {
    if (!problem) return;
    document.getElementById("status").textContent = problem;
    document.documentElement.dataset.problem = "yes";
  });
})();
